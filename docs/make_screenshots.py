"""Make the images of README and docs from a finished sweep: python docs/make_screenshots.py multirun/<sweep> [step]

docs/depth.png is the report's figure of gradients by depth at that step (default: 60), the gradient_flow images are
TensorBoard's figures, and the others are Chromium screenshots of the report and of TensorBoard (needs Debian's chromium
and chromium-driver, and `pip install selenium`).
"""

import io
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from bertmon.compare.layer_plots import gradient_depth, nearest_snapshot
from bertmon.compare.plots import to_png
from bertmon.compare.results import read_sweep
from bertmon.compare.selection import select_layer_runs
from bertmon.monitor.figure_canvas import png
from bertmon.monitor.figures import gradient_flow

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def browser(width: int = 1300, height: int = 1000, *, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that records its console."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "use-angle=swiftshader", "enable-unsafe-swiftshader", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={width},{height}")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def board(folder: Path) -> Iterator[str]:
    """Run `bertmon tensorboard` on the folder; yields its address."""
    command = [sys.executable, "-m", "bertmon", "tensorboard", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(line.split(" at ")[1].split()[0] for line in process.stdout if "Press CTRL+C" in line)
            yield address
        finally:
            process.terminate()


def text_of(driver: webdriver.Chrome) -> str:
    """All text of the page, including text inside web components."""
    script = """
        const seen = [];
        const walk = node => {
            if (node.shadowRoot) walk(node.shadowRoot);
            if (node.nodeType === 3) seen.push(node.textContent.trim());
            if (!["STYLE", "SCRIPT", "NOSCRIPT"].includes(node.nodeName)) node.childNodes.forEach(walk);
        };
        walk(document.body);
        return seen.filter(text => text).join("\\n");"""
    text: str = driver.execute_script(script)
    return text


def shows(driver: webdriver.Chrome, address: str, *words: str, seconds: float = 600) -> str:
    """Open the address and wait until all words appear; returns the page's text."""
    driver.get("about:blank")
    driver.get(address)
    WebDriverWait(driver, seconds).until(
        lambda _: all(word in text_of(driver) for word in words), f"{words} on {address}: {text_of(driver)}"
    )
    return text_of(driver)


def main(sweep_dir: Path, step: int) -> None:
    here = Path(__file__).parent
    runs = select_layer_runs(read_sweep([sweep_dir]))
    if depth := gradient_depth(runs, step):
        (here / "depth.png").write_bytes(to_png(depth))
    for run in runs:
        warmup = run.setting.values["schedule.warmup_frac"]
        snapshot = nearest_snapshot(run, step)
        (here / f"gradient_flow_warmup_{warmup}.png").write_bytes(png(gradient_flow(snapshot)))
        print(f"gradient_flow_warmup_{warmup}.png: step {snapshot.step} of {run.run.name}")
    with browser(1250, 1420) as driver, board(sweep_dir) as address:
        driver.get((sweep_dir / "report.html").absolute().as_uri())
        _save(driver, here / "report.png")
        shows(driver, f"{address}#custom_scalars", "Overview", "warmup_frac=0.7/seed=0")
        time.sleep(3)  # the curves are drawn after their titles
        _save(driver, here / "tensorboard.png")


def _save(driver: webdriver.Chrome, target: Path) -> None:
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
