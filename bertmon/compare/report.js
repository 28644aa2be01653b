// Tables: a click on a header sorts, the field filters, the button copies what is shown as CSV.
for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table"), body = table.tBodies[0];
  const text = cell => (cell.querySelector("a") ?? cell).textContent.trim();  // a run's name without the link to its log
  const seconds = {h: 3600, min: 60, s: 1};
  const number = value => {  // a duration in seconds, or the number that the text starts with
    if (/^(\d+ (h|min|s) ?)+$/.test(value)) {
      return [...value.matchAll(/(\d+) (\w+)/g)].reduce((sum, [, count, unit]) => sum + count * seconds[unit], 0);
    }
    const found = value.match(/^-?[\d.]+(e-?\d+)?/);
    return found ? parseFloat(found[0]) : NaN;
  };
  const shown = () => [...body.rows].filter(row => !row.hidden);
  [...table.tHead.rows[0].cells].forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    const key = row => text(row.cells[column]);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      return (isNaN(x) || isNaN(y) ? key(a).localeCompare(key(b)) : x - y) * (up ? 1 : -1);
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
  box.querySelector("input").addEventListener("input", event => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
  box.querySelector("button").addEventListener("click", async event => {
    const lines = [table.tHead.rows[0], ...shown()].map(row => [...row.cells].filter(cell => !cell.classList.contains("swatch"))
      .map(cell => /[",\n]/.test(text(cell)) ? `"${text(cell).replaceAll('"', '""')}"` : text(cell)).join(","));
    await navigator.clipboard.writeText(lines.join("\n") + "\n");
    event.target.textContent = "Copied";
    setTimeout(() => { event.target.textContent = "Copy as CSV"; }, 1500);
  });
}
