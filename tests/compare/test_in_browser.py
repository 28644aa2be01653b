"""The report and TensorBoard of a real sweep in Chromium, as a reader sees them."""

import pytest
from conftest import TIMEOUT, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertmon.compare import report, summary
from bertmon.training.run_training import run_training

screenshots = pytest.importorskip("make_screenshots", reason="selenium is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (screenshots.CHROMIUM and screenshots.DRIVER),
        reason="Debian's chromium and chromium-driver are not installed",
    ),
]

NAMES = ["warmup_frac=0.1/seed=0", "warmup_frac=0.7/seed=0"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two finished runs and their report, which the tests only read."""
    settings, folder = small_run(tmp_path_factory.mktemp("texts")), tmp_path_factory.mktemp("sweep")
    for name, warmup_frac in zip(NAMES, (0.1, 0.7), strict=True):
        (folder / name).mkdir(parents=True)
        settings.schedule.warmup_frac = warmup_frac
        settings.monitor.every = 4
        run_training(settings, folder / name, name=name, overrides={"schedule.warmup_frac": str(warmup_frac)})
    report.write_report([folder], folder)
    return folder


def console_errors(driver):
    """Severe errors in the browser's console; TensorBoard's own pages always log minor ones."""
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


def visible_figures(driver):
    return driver.execute_script(
        "const seen = [...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility());"
        "return seen.map(svg => svg.getBoundingClientRect())"
    )


@pytest.mark.parametrize("dark", [False, True])
def test_report_is_readable_on_light_and_dark_pages(sweep, dark):
    sentences = summary.conclusions(report.read_sweep([sweep]))
    with screenshots.browser(dark=dark) as driver:
        text = screenshots.shows(driver, (sweep / "report.html").as_uri(), "training loss", "Folder")
        written = driver.execute_script("return document.querySelector('.answer').textContent")
        assert all(sentence in written for sentence in sentences)
        for phrase in ("standard deviation of the logits over texts", "gradient depth ratio", "enc.l.1.output.dense"):
            assert phrase in text
        boxes = visible_figures(driver)
        assert len(boxes) == 2 + 1 + 1 + 1  # points, depth, curves, the first heat map
        assert all(500 < box["width"] < 1300 and box["height"] > 150 for box in boxes)
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        ink, paper = driver.execute_script(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        light = {"rgb(29, 33, 38)": "rgb(255, 255, 255)"}
        assert {ink: paper} == ({"rgb(230, 232, 235)": "rgb(22, 24, 27)"} if dark else light)
        title = driver.execute_script("return getComputedStyle(document.querySelector('svg text')).fill")
        assert title == ink
        assert console_errors(driver) == []


def test_report_on_a_phone_scrolls_figures(sweep):
    with screenshots.browser(500, 900) as driver:  # Chromium has no narrower window
        screenshots.shows(driver, (sweep / "report.html").as_uri(), "training loss")
        assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert max(box["width"] for box in visible_figures(driver)) > 700
        sizes = driver.execute_script(
            "const texts = [...document.querySelectorAll('svg text')];"
            "return texts.filter(text => text.checkVisibility() && text.textContent)"
            ".map(text => text.getBoundingClientRect().height)"
        )
        assert min(sizes) > 7  # pixels, from the top of a letter to its bottom


def test_report_tables_sort_filter_and_copy(sweep):
    with screenshots.browser() as driver:
        screenshots.shows(driver, (sweep / "report.html").as_uri(), "training loss")
        driver.execute_script("navigator.clipboard.writeText = async text => { window.copied = text; };")

        def column(name):
            return driver.execute_script(
                f"const rows = [...document.querySelectorAll('#{name} tbody tr:not([hidden])')];"
                "return rows.map(row => row.cells[1].textContent)"
            )

        assert column("settings") == ["0.1", "0.7"]
        for order in (["0.1", "0.7"], ["0.7", "0.1"]):
            driver.execute_script("document.querySelectorAll('#settings th')[1].click()")
            assert column("settings") == order
        field = driver.find_element("css selector", ".table:has(#settings) input")
        field.send_keys("0.7")
        assert "0.7" in column("settings")
        field.clear()
        field.send_keys("nothing like that")
        assert column("settings") == []
        field.clear()
        field.send_keys(" ")
        driver.find_element("css selector", ".table:has(#settings) button").click()
        screenshots.WebDriverWait(driver, TIMEOUT).until(lambda _: driver.execute_script("return window.copied"))
        copied = driver.execute_script("return window.copied").splitlines()
        assert copied[0].startswith("warmup_frac,runs,test accuracy")
        assert [line.split(",")[0] for line in copied[1:]] == ["0.7", "0.1"]
        times = driver.execute_script(
            "const heads = [...document.querySelectorAll('#settings th')].map(head => head.textContent);"
            "const at = heads.indexOf('time');"
            "const cells = () => [...document.querySelectorAll(`#settings td:nth-child(${at + 1})`)];"
            "cells().forEach((cell, row) => { cell.textContent = ['2 h 05 min', '50 min 00 s'][row]; });"
            "document.querySelectorAll('#settings th')[at].click(); return cells().map(cell => cell.textContent)"
        )
        assert times == ["50 min 00 s", "2 h 05 min"]
        assert console_errors(driver) == []


def test_tensorboard_shows_every_page(sweep):
    tags = EventAccumulator(str(sweep / NAMES[0])).Reload().Tags()
    with screenshots.browser(1500, 3000) as driver, screenshots.board(sweep) as address:
        assert "localhost" in address
        text = screenshots.shows(driver, f"{address}#custom_scalars", *NAMES, "log10 of the depth ratio of gradients")
        for chart in ("loss", "accuracy", "learning rate, nominal and effective"):
            assert chart in text.splitlines()
        screenshots.shows(driver, f"{address}#images", *NAMES, "gradient_depth", "gradient_flow")

        def drawn(_):
            return loaded_images(driver).count(1050) >= 4  # TensorBoard loads only images in view

        screenshots.WebDriverWait(driver, TIMEOUT).until(drawn)
        columns = (
            "schedule.warmup_frac",
            "seed",
            "verdict",
            "verdict_step",
            "accuracy/test",
            "peak_effective_lr",
            "did_not_learn",
        )
        screenshots.shows(driver, f"{address}#hparams", *columns)
        screenshots.shows(driver, f"{address}#text", *NAMES, "config")
        groups = {tag.split("/")[0] for tag in tags["scalars"]}
        assert groups >= {"loss", "accuracy", "grad_mean", "update_ratio", "weight_rms", "logit_std"}
        screenshots.shows(driver, f"{address}#timeseries", *NAMES, *groups)
        assert console_errors(driver) == []
