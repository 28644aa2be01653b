"""What a reader sees: the report and TensorBoard in Chromium, on a real sweep."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.compare import report, summary
from bertmon.run import run_training

screenshots = pytest.importorskip("make_screenshots", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(
    not (screenshots.CHROMIUM and screenshots.DRIVER), reason="Debian's chromium and chromium-driver are not installed"
)

NAMES = ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]


@pytest.fixture
def sweep(settings, tmp_path):
    folder = tmp_path / "sweep"
    for name, warmup_frac in zip(NAMES, (0.1, 0.7), strict=True):
        (folder / name).mkdir(parents=True)
        settings.schedule.warmup_frac = warmup_frac
        settings.monitor.every = 4
        run_training(settings, folder / name, name=name, differs={"schedule.warmup_frac": str(warmup_frac)})
    report.write_report([folder], folder)
    return folder


def complaints(driver):
    """Errors in the browser's console; what TensorBoard's own pages always log is left out."""
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def loaded_images(driver):
    """Widths in pixels of the pictures on the page."""
    return driver.execute_script("""
        const found = [];
        const walk = node => {
            if (node.shadowRoot) walk(node.shadowRoot);
            if (node.nodeName === "IMG" && node.naturalWidth) found.push(node.naturalWidth);
            node.childNodes.forEach(walk);
        };
        walk(document.body);
        return found;""")


@pytest.mark.parametrize("dark", [False, True])
def test_the_report(sweep, dark):
    said = summary.conclusions(report.read_sweep([sweep]))
    with screenshots.browser(dark=dark) as driver:
        text = screenshots.shows(driver, (sweep / "report.html").as_uri(), "training loss", *said)
        for word in ("spread of the logits", "depth profile of the gradients", "enc.l.1.output.dense", *NAMES):
            assert word in text
        boxes = driver.execute_script(
            "const seen = [...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility());"
            "return seen.map(svg => svg.getBoundingClientRect())"
        )
        assert len(boxes) == 1 + 2 + 6
        assert all(1000 < box["width"] < 1300 and box["height"] > 150 for box in boxes)
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        ink, paper = driver.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        light = {"rgb(29, 33, 38)": "rgb(255, 255, 255)"}
        assert {ink: paper} == ({"rgb(230, 232, 235)": "rgb(22, 24, 27)"} if dark else light)
        title = driver.execute_script("return getComputedStyle(document.querySelector('svg text')).fill")
        assert title == ink
        assert complaints(driver) == []


def test_tensorboard(sweep):
    tags = EventAccumulator(str(sweep / NAMES[0])).Reload().Tags()
    with screenshots.browser(1500, 3000) as driver, screenshots.board(sweep) as address:
        assert "localhost" in address
        text = screenshots.shows(driver, f"{address}#custom_scalars", *NAMES, "depth profile of the gradients")
        for chart in ("loss", "accuracy", "learning rate, nominal and effective", "spread of the logits"):
            assert chart in text.splitlines()
        screenshots.shows(driver, f"{address}#images", *NAMES, "side by side", "gradient_flow", "update_ratio")

        def drawn(_):
            widths = loaded_images(driver)  # TensorBoard loads what is in view
            return widths.count(1050) >= 2 and widths.count(1100) >= 2  # each run's own, and those beside each other

        screenshots.WebDriverWait(driver, 40).until(drawn)
        columns = ("schedule.warmup_frac", "seed", "verdict", "verdict_step", "accuracy/test", "loss/test")
        screenshots.shows(driver, f"{address}#hparams", *columns)
        screenshots.shows(driver, f"{address}#text", *NAMES, "config")
        groups = {tag.split("/")[0] for tag in tags["scalars"]}
        assert groups >= {"loss", "accuracy", "grad_mean", "update_ratio", "weight_rms", "logit_std"}
        screenshots.shows(driver, f"{address}#timeseries", *NAMES, *groups)
        assert complaints(driver) == []
