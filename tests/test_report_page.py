"""The run page in a real browser: a trained run's page loads alone, its sliders and its light work."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from neuropbr_dist.commands.report import run as report
from neuropbr_dist.materials.bench import orbit, relit
from neuropbr_dist.materials.families import material_maps
from neuropbr_dist.report.folder import read_run
from neuropbr_dist.report.page import render
from neuropbr_dist.report.samples import samples
from tests.support.chromium import NO_WEBGL, WEBGL, browser
from tests.support.distributed import ROOT
from tests.support.material_files import write_set
from tests.support.train_runs import SINGLE_PROCESS_SAVES, resume, run

pytestmark = [SINGLE_PROCESS_SAVES, pytest.mark.multiprocess]
DRIVER_NOISE = "GL Driver Message"  # the processor's WebGL remarks that reading pixels back is slow
MAPS = ("albedo", "roughness", "metallic", "normal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four epochs, restarted on two ranks after the second; the GAN from the third on."""
    root = tmp_path_factory.mktemp("report")
    path = root / "run & <more>"
    renders, maps = write_set(root, {f"sample_{i}": f"m{i}" for i in range(10)}, size=32)
    data = ["--input-dir", str(renders), "--output-dir", str(maps)]
    ended = run(path, *data, "--stop-after-epochs", "2", data__val_ratio=0.4, training__global_batch_size=3)
    assert ended.code == 0, ended.err
    ended = resume(path, "--engine", "fsdp", world=2)
    assert ended.code == 0, ended.err
    return path


@pytest.fixture(scope="module")
def page(folder):
    """Written through the launch script."""
    words = [sys.executable, ROOT / "launch" / "report.py", folder]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"Wrote {folder / 'report.html'}" in done.stdout
    return folder / "report.html"


def opened(window, page):
    """The page as a person finds it: pictures painted; the light stands still."""
    window.open("about:blank")
    window.requests(), window.console()
    window.open(page)
    window.until("return document.querySelector('#maps canvas')?.width === 32")
    window.until("return document.querySelector('.map:last-child small').textContent.startsWith('off by')")
    window.run(
        "if (document.querySelector('#play').textContent === 'Pause') document.querySelector('#play').click()"
    )
    return window


@pytest.fixture(scope="module")
def window(page):
    with browser(*WEBGL) as window:
        yield opened(window, page)


def complaints(window):
    return [message for message in window.console() if DRIVER_NOISE not in message]


def slide(window, selector, value):
    script = "const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    window.run(script, selector, value)


def settled(window, selector):
    """A canvas once no frame is owed to it."""
    window.run(
        "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
    )
    return window.pixels(selector)


def test_nothing_is_asked_for_and_nothing_complained_of(window, page):
    assert complaints(window) == []
    asked = [url for url in window.requests() if not url.startswith("data:")]
    assert asked == [page.resolve().as_uri()]
    assert not window.run("return document.querySelector('#no-light').checkVisibility()")
    # Were there a word that made it ask for more, it would be refused.
    window.run("new Image().src = 'http://127.0.0.1:9/x.png'")
    window.until("return true")
    assert any("Content Security Policy" in message for message in window.console())
    window.requests()


def test_the_slider_of_epochs_changes_pictures_and_words(window):
    last = {
        name: settled(window, f".map:nth-child({i}) figure:nth-of-type(1) canvas")
        for i, name in enumerate(MAPS, 1)
    }
    said = window.run("return document.querySelector('#when').textContent")
    assert said.startswith("Epoch 4 · step ")
    relit_last = settled(window, "#relit-pred")
    slide(window, "#epoch", 0)
    window.until("return document.querySelector('#when').textContent.startsWith('Epoch 0 · step 0')")
    window.until("return arguments[0] !== document.querySelector('.map small').textContent", said)
    before = settled(window, ".map:nth-child(1) figure:nth-of-type(1) canvas")
    assert np.abs(before.astype(int) - last["albedo"]).mean() > 1
    assert np.abs(settled(window, "#relit-pred").astype(int) - relit_last).mean() > 0.5
    slide(window, "#epoch", 4)
    window.until("return document.querySelector('#when').textContent.startsWith('Epoch 4')")
    again = settled(window, ".map:nth-child(1) figure:nth-of-type(1) canvas")
    assert (again == last["albedo"]).all()


def test_maps_are_those_of_the_run(window, folder):
    from PIL import Image

    key = window.run("return document.querySelector('#keys [aria-pressed=true]').textContent")
    steps = sorted((folder / "looks" / key).glob("step_*"))
    for i, name in enumerate(MAPS, 1):
        for kind, path in ((1, steps[-1]), (2, folder / "looks" / key / "true")):
            shown = settled(window, f".map:nth-child({i}) figure:nth-of-type({kind}) canvas").astype(int)
            kept = np.asarray(Image.open(path / f"{name}.png").convert("RGB"))
            assert np.abs(shown - kept).mean() < 6, (
                name,
                kind,
            )  # the page's pictures are lossy, noise the worst case


def test_another_sample_is_another_material(window):
    shown = settled(window, "#relit-true")
    assert window.run("return document.querySelectorAll('#keys button').length") == 2
    window.run("document.querySelector('#keys button:last-child').click()")
    window.until("return document.querySelector('.map:last-child small')?.textContent.startsWith('off by')")
    other = settled(window, "#relit-true")
    assert np.abs(other.astype(int) - shown).mean() > 5
    window.run("document.querySelector('#keys button:first-child').click()")
    window.until("return document.querySelector('.map:last-child small')?.textContent.startsWith('off by')")
    assert (settled(window, "#relit-true") == shown).all()


def test_the_light_moves_by_slider_and_by_pointer_on_both_sides(window):
    for canvas in ("#relit-pred", "#relit-true"):
        slide(window, "#light", 0)
        right = settled(window, canvas)
        slide(window, "#light", 180)
        left = settled(window, canvas)
        assert np.abs(right.astype(int) - left).mean() > 2
        # Lit from the right, the right half is the brighter one; from the left, the left.
        assert right[:, 16:].mean() > right[:, :16].mean() and left[:, :16].mean() > left[:, 16:].mean()
    window.point("#relit-pred", 0.5, 0.05)
    top = settled(window, "#relit-true")
    window.point("#relit-pred", 0.5, 0.95)
    bottom = settled(window, "#relit-true")
    assert top[:16].mean() > top[16:].mean() and bottom[16:].mean() > bottom[:16].mean()


def test_play_turns_the_light(window):
    slide(window, "#light", 10)
    before = settled(window, "#relit-true")
    window.run("document.querySelector('#play').click()")
    window.until("return Number(document.querySelector('#light').value) > 15")
    window.run("document.querySelector('#play').click()")
    assert (settled(window, "#relit-true") != before).any()
    assert complaints(window) == []


def test_the_shader_is_the_built_in_materials_renderer(window):
    """The same numbers as `materials.bench.relit`, of which a test says that it is the renderer."""
    script = """
        const [size, channels, lamps] = arguments, canvas = document.createElement("canvas");
        canvas.id = "probe";
        document.body.append(canvas);
        const shader = makeShader(canvas, DATA.bench);
        shader.setMaterial({size: [size, size], channels: channels.map((c) => Uint8Array.from(c))});
        const shown = lamps.map((lamp) => { shader.draw(lamp); return canvas.toDataURL("image/png"); });
        window.probe = {shader, shown};
    """
    for index in (3, 4, 7):  # mossy stone, brushed metal, rust
        maps = material_maps(42, index, 48)
        lamps = [orbit(0.13), orbit(0.8), np.array([0.9, -0.2, 0.9])]
        window.run(script, 48, maps.reshape(8, -1).tolist(), [lamp.tolist() for lamp in lamps])
        for i, lamp in enumerate(lamps):
            window.run("window.probe.shader.draw(arguments[0])", lamp.tolist())
            shown = window.pixels("#probe").astype(int)
            difference = np.abs(shown - relit(maps, lamp))
            assert difference.max() <= 2 and difference.mean() < 0.15, (index, i)
        window.run("document.querySelector('#probe').remove()")


def test_curves_say_what_happened(window):
    titles = window.run(
        "return [...document.querySelectorAll('.chart h3')].map((e) => e.firstChild.textContent)"
    )
    for name in ("Generator's loss", "Adversarial losses", "Albedo · error", "Normal · PSNR", "Metallic · SSIM",
                 "Normal angle", "Learning rate", "Gradient norm", "Throughput", "World size"):  # fmt: skip
        assert name in titles, name
    marks = window.run("return [...document.querySelectorAll('.chart .mark-text')].map((e) => e.textContent)")
    assert {"2 ranks", "GAN starts"} <= set(marks)
    paths = window.run(
        "return [...document.querySelectorAll('.chart > svg path')].map((e) => e.getAttribute('d'))"
    )
    assert all(path.startswith("M") and "NaN" not in path and "undefined" not in path for path in paths)
    window.point(".chart > svg", 0.5, 0.5)
    window.until("return /step \\d+, epoch \\d/.test(document.querySelector('.chart .legend').textContent)")


def test_words_of_the_page(window, folder):
    text = window.run("return document.body.innerText")
    assert folder.name in text  # & and < are themselves
    for words in (
        "Finished at step",
        "epoch 4 of 4",
        "1 rank",
        "2 ranks",
        "fsdp",
        "torch ",
        "1 node",
    ):
        assert words in text, words
    rows = window.run("return [...document.querySelectorAll('.wide tbody tr')].map((e) => e.innerText)")
    assert len(rows) == 2 and "--stop-after-epochs" in rows[0] and "finished" in rows[1]
    changed = window.run(
        "return [...document.querySelectorAll('.config .changed th')].map((e) => e.textContent)"
    )
    assert "gan_start_epoch" in changed and "g_betas" not in changed


def test_without_webgl_the_maps_are_there_and_a_sentence_stands_for_the_light(page):
    with browser(*NO_WEBGL) as window:
        opened(window, page)
        assert complaints(window) == []
        visible = "return document.querySelector(arguments[0]).checkVisibility()"
        shown = [window.run(visible, each) for each in ("#maps canvas", "#views", "#no-light")]
        hidden = [window.run(visible, each) for each in ("#relit-pred", "#relit-true", "#light")]
        assert all(shown) and not any(hidden)


@pytest.mark.parametrize("width", [360, 1280])
def test_no_side_scrolling(page, width):
    with browser(*WEBGL) as window:
        window.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        opened(window, page)
        assert window.run("return document.documentElement.scrollWidth") <= width
        first, second = window.run(
            "return ['#relit-pred', '#relit-true'].map((s) => document.querySelector(s).getBoundingClientRect().top)"
        )
        assert first == second  # side by side, also on a phone


def variant(folder, tmp_path, keep):
    """A copy of the run with fewer lines in its metrics."""
    saves = [path.name for path in folder.glob("step_*")]  # the pictures' folders have such names too
    copy = shutil.copytree(
        folder, tmp_path / "copy", symlinks=True, ignore=lambda at, _: saves if at == str(folder) else []
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if keep(line)))
    return copy


@pytest.mark.parametrize("case", ["no validation yet", "nothing yet", "no gan", "nan"])
def test_runs_that_lack_something(folder, tmp_path, case):
    copy = variant(
        folder,
        tmp_path,
        lambda line: case in ("no gan", "nan") or (case != "nothing yet" and "val/loss" not in line),
    )
    metrics = copy / "metrics.jsonl"
    if case == "no gan":
        metrics.write_text(metrics.read_text().replace('"train/D_', '"x/D_').replace("G_gan", "x"))
    if case == "nan":
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        for line in lines[3:5]:
            line.update({name: "nan" for name in line if name.startswith(("train/G", "val/"))})
        for line in lines[4:]:
            line["train/skipped_generator"] = 2.0
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([str(copy), "--debug"])
    with browser(*NO_WEBGL) as window:
        window.open("about:blank")
        window.console()
        window.open(copy / "report.html")
        window.until("return document.readyState === 'complete'")
        assert complaints(window) == []
        hidden = window.run(
            "return [document.querySelector('#material').hidden, document.querySelector('#no-material').hidden]"
        )
        assert hidden == ([False, True] if case in ("no gan", "nan") else [True, False])
        titles = window.run(
            "return [...document.querySelectorAll('#curves .chart h3')].map((e) => e.firstChild.textContent)"
        )
        assert ("Adversarial losses" in titles) == (case in ("no validation yet", "nan"))
        assert (titles == []) == (case == "nothing yet")
        assert ("Updates skipped, in all" in titles) == (case == "nan")


def test_a_value_that_looks_like_a_placeholder_stays_one(folder, tmp_path):
    copy = variant(folder, tmp_path, lambda _: True)
    copy = copy.rename(copy.with_name("{{script}}"))
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("wandb_run_name: null", "wandb_run_name: '{{data}}'"))
    page = render(read_run(copy))
    assert "<h1>{{script}}</h1>" in page and "{{data}}" in page and page.count("</script>") == 2
    json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_a_look_that_is_half_there_is_left_out(folder, tmp_path, messages):
    copy = variant(folder, tmp_path, lambda _: True)
    true = sorted((copy / "looks").rglob("true"))
    os.truncate(true[0] / "albedo.png", 20)
    assert len(samples(read_run(copy))) == len(true) - 1
    assert "left out" in " ".join(messages)
