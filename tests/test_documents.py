"""What the documents say works: their code runs, their commands and options exist, their links lead somewhere.

The blocks of a page run from its top to its bottom in one folder. There `train.py` and `sweep.py` are only checked:
flags, fields and values by the real definitions. A run of one epoch stands in for what they would leave, and other
commands really use it. A network that a page writes to a file is really trained, for one epoch. Benchmarks are checked
up to the parsing of their arguments.
"""

import copy
import importlib
import re
import runpy
import shutil
import sys
import tomllib
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from flax import nnx
from PIL import Image

from benchmarks import tables
from dctps_jax import data, pruning
from dctps_jax.cli import sweep, train
from dctps_jax.config import check_config, resolve
from dctps_jax.defaults import get_config
from dctps_jax.models import create_model
from dctps_jax.optimizers import SCHEDULES, make_optimizer
from dctps_jax.pruning.scores import markdown_table
from dctps_jax.runs.grid import plan_runs
from dctps_jax.training.run import run
from dctps_jax.training.state import create_state
from dctps_jax.training.step import train_step
from experiments import tables as results
from tests.commands import call
from tests.documents import PAGES, REPO, anchors, blocks, code_spans, commands, linked_headings, links, prose, read
from tests.small_runs import small_run, train_on_one_device

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
LANGUAGES = ("python", "bash", "text", "bibtex")
# Programs of others, whose arguments are theirs.
TOOLS = ("ruff", "pyright", "pytest", "mkdocs", "source", ".", "gcloud")
GROUPS = tuple(name for name, value in get_config().items() if hasattr(value, "items"))
FOLDERS = (
    "configs",
    "dctps_jax",
    "docs",
    "examples",
    "notebooks",
    "benchmarks",
    "experiments",
    "results",
    "tests",
    ".ci",
)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        train_on_one_device(patch)
        small_run(workdir, num_epochs=1, batch_size=128)
    return workdir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the repository's folders, and the package as it was before whatever a page registers."""
    for name in FOLDERS:
        (tmp_path / name).symlink_to(REPO / name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "IMAGE.png")
    monkeypatch.chdir(tmp_path)
    train_on_one_device(monkeypatch)
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "dctps_jax"]
    tables = {id(table): table for module in modules for table in vars(module).values() if isinstance(table, dict)}
    before = [(table, copy.copy(table)) for table in tables.values() if "__name__" not in table]
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)
    for table, content in before:
        table.clear()
        table.update(content)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_blocks_work(page, folder, finished_run):
    names = {"__name__": "page"}
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line} is in {block.language!r}"
        if file := re.match(r"# (\w+\.py)\n", block.code):
            (folder / file[1]).write_text(block.code)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, REPO / page, "exec"), names)
        if block.language == "bash":
            for command in commands(block.code):
                do(command, finished_run)


@pytest.mark.parametrize("method", ["sqrt", "gradient_norm"])
def test_what_the_page_on_extending_adds_trains_together(folder, method):
    names = {"__name__": "page"}
    for block in blocks("docs/extending.md"):
        exec(block.code, names)
    stripes = data.load("stripes")
    batch = jnp.asarray(stripes.train_images, jnp.float32) / 255, jnp.asarray(stripes.train_labels)
    model = create_model("all_convolutional", num_classes=2, offset="identity", rngs=nnx.Rngs(0))
    options: dict[str, Any] = {"batch": batch} if method in pruning.SCORES else {}
    masks = pruning.prune(model, method, 0.1, key=jax.random.key(0), **options)
    pruning.apply_masks(model, masks, form="compact")
    schedule = SCHEDULES["linear"](types.SimpleNamespace(learning_rate=0.01), 10, 2)
    rates = [np.asarray(schedule(step)).item() for step in (0, 10, 20)]
    assert rates == pytest.approx([0.01, 0.005, 0])
    optimizer = make_optimizer("signum", schedule, momentum=0.9, weight_decay=5e-4, fixup=False)
    graphs, state = create_state(model, optimizer)
    step = jax.jit(partial(train_step, graph=graphs.train, optimizer=optimizer))
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def do(command, finished_run):
    """Run a command of a page, or check that it could be run."""
    program, *arguments = command
    program = program.removeprefix(".venv/bin/")
    match program, *arguments:
        case "python3", "-m", "venv", _:
            pass
        case "srun", *started:
            do(started, finished_run)
        case "python", "-m", module, *arguments if module.startswith("experiments."):
            check_arguments(f"{module.replace('.', '/')}.py", arguments)
        case "python", "-m", module, *arguments:
            do_program(module, arguments, finished_run)
        case "python", "train.py" | "sweep.py" | "predict.py" as script, *arguments:
            do_program(f"dctps_jax.cli.{script.removesuffix('.py')}", arguments, finished_run)
        case "python", script if script.startswith("examples/"):
            assert (REPO / script).is_file()  # tests/test_examples.py runs them
        case "python", script, *arguments if script.startswith("benchmarks/"):
            check_arguments(script, arguments)
        case "pip", "install", *arguments:
            check_installation(arguments)
        case _ if program in PROJECT["scripts"]:
            do_program(PROJECT["scripts"][program].removesuffix(":main"), arguments, finished_run)
        case _:
            assert program in TOOLS, f"nobody knows how to check {command}"


def do_program(module, arguments, finished_run):
    """Check what trains; run the others, with the finished run wherever they expect one."""
    for workdir in re.findall(r"runs/\w+", " ".join(arguments)):
        if not Path(workdir).exists():
            shutil.copytree(finished_run, workdir)
    match module.rpartition(".")[2]:
        case "train":
            config, workdir, _ = parse_flags(arguments)
            config.distributed.shards = 1  # the machine has fewer devices than a page speaks of
            check_config(resolve(config))
            if Path(f"{config.model.name.partition(':')[0]}.py").exists():
                config.num_epochs, config.execution.keep_memory = 1, False
                shutil.rmtree(workdir)
                run(config, workdir)
            else:
                shutil.copytree(finished_run, workdir, dirs_exist_ok=True)
        case "sweep":
            config, workdir, grid = parse_flags(arguments)
            assert grid, f"{arguments} names no sweep"
            assert len(plan_runs(config, sweep.load_sweep(grid))) > 1
            shutil.copytree(finished_run, Path(workdir) / "run", dirs_exist_ok=True)
        case "launch":
            place = arguments.index("--")
            check_arguments("dctps_jax/cli/launch.py", arguments[:place])
            do_program("dctps_jax.cli.train", arguments[place + 1 :], finished_run)
        case _:
            succeed(importlib.import_module(module).main, *arguments)


def succeed(main, *arguments):
    done = call(main, *arguments)
    assert done.code == 0, done.err


def parse_flags(arguments):
    """Return the config, the directory and the sweep that a command line of train.py or sweep.py gives."""
    argv = ["train.py", *arguments]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where ml_collections looks for fields
        assert train.parse_flags(argv) == ["train.py"], f"{arguments} has a word that is no option"
        grid, files = sweep.SWEEP.value, [sweep.SWEEP.value] if sweep.SWEEP.value else []
        return train.CONFIG.value, train.workdir_of("sweeps" if files else "runs", *files), grid


def check_arguments(script, arguments):
    """Check the arguments of an argparse program without running it: only the one added here is unknown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "benchmarks"))
        done = call(lambda: runpy.run_path(str(REPO / script), run_name="__main__"), *arguments, "--no-such-option")
    assert done.code == 2 and "unrecognized arguments: --no-such-option\n" in done.err, done


def check_installation(arguments):
    for argument in arguments:
        if argument.startswith("."):
            extras = argument[2:-1].split(",")
            assert set(extras) <= set(PROJECT["optional-dependencies"]), f"pyproject.toml does not have all of {extras}"
        else:
            assert argument in ("-q", "-r", "-e", "requirements.txt"), arguments


@pytest.mark.parametrize("page", PAGES)
def test_options_fields_and_paths_in_the_text_exist(page, folder):
    for span in code_spans(page):
        if span.lstrip('"').startswith("--config."):
            for command in commands(span):
                parse_flags(["--config", "configs/lenet_digits.py", *command])
        if re.fullmatch(rf"(config\.)?({'|'.join(GROUPS)})\.[a-z_]+(=\S+)?", span) and not span.endswith(".json"):
            node = get_config()
            for name in span.removeprefix("config.").partition("=")[0].split("."):
                assert name in node, f"{page}: there is no field {span}"
                node = node[name]
        if span.startswith(tuple(f"{name}/" for name in FOLDERS)) and not re.search(
            "[A-Z<*]", span.replace("README", "")
        ):
            places = REPO / span, (REPO / page).parent / span
            assert any(place.exists() for place in places), f"{page}: {span} does not exist"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in links(page):
        assert (REPO / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_headings(page):
    for file, anchor in linked_headings(page):
        assert anchor in anchors(file), f"{page} links to {file}#{anchor}"


def test_the_readme_is_short_and_counts_the_lines_of_the_example():
    assert len(read("README.md").splitlines()) <= 120
    (lines,) = re.findall(r"takes (\d+) lines: \[examples/optax_only.py\]", read("README.md"))
    assert int(lines) == len(read("examples/optax_only.py").splitlines())


def test_every_document_is_listed():
    pages = [page for page in PAGES if page.startswith("docs/") and page.count("/") == 1]
    assert set(pages) <= set(links("README.md"))
    navigation = read("mkdocs.yml")
    for page in PAGES:
        assert page == "README.md" or page.removeprefix("docs/") in navigation, f"mkdocs.yml does not list {page}"


@pytest.mark.parametrize(
    ("page", "heading", "package"),
    [
        ("docs/extending.md", "## Where things are\n", "dctps_jax"),
        ("dctps_jax/ops/README.md", "## Files\n", "dctps_jax/ops"),
    ],
)
def test_tables_of_files_have_every_module(page, heading, package):
    section = prose(page).partition(heading)[2].partition("\n## ")[0]
    listed = [name for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for name in row.split(", ")]
    modules = [path.name for path in (REPO / package).glob("*.py") if path.stem != "__init__"]
    folders = [f"{path.parent.name}/" for path in (REPO / package).glob("*/__init__.py")]
    assert sorted(listed) == sorted(f"`{name}`" for name in modules + folders)


def test_the_table_of_scores_is_that_of_the_package():
    assert markdown_table() in prose("docs/experiments.md")


def test_tables_of_results_are_made_from_the_saved_runs():
    assert results.original() in prose("docs/paper.md")
    assert results.methods() in prose("docs/results.md")
    assert results.comparison() in prose("docs/results.md")
    assert results.schedules() in prose("docs/recipes.md")
    for table in (results.loss_at_start(), results.trials_of("lenet")):
        assert len(table.splitlines()) > 10
        assert table in prose("docs/training_dct_networks.md")


def test_figures_of_the_examples_are_those_that_they_printed():
    """Each cell of the page's tables of figures stands in a line that begins with the names of its row and column."""

    def bare(text):
        return re.sub("[`% ]", "", text).lower()

    files = (REPO / "results/examples").glob("*.txt")
    printed = [bare(line) for file in files for line in file.read_text().splitlines()]
    number_of_figures = 0
    for table in re.findall(r"(?:^\|.*\n)+", read("docs/own_network.md"), re.MULTILINE):
        titles, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        if titles[0] not in ("Vision Transformer, accuracy", "decoder, perplexity", "trained"):
            continue
        for name, *cells in rows:
            for title, cell in zip(titles[1:], cells, strict=True):
                begins = name if titles[0] == "trained" else title if title == "all weights" else f"{title}, {name}"
                assert not cell or any(line.startswith(bare(begins)) and bare(cell) in line for line in printed), begins
                number_of_figures += bool(cell)
    assert number_of_figures == 20
    text = read("docs/own_network.md").replace("\n", " ")
    accuracies = re.findall(r"\d+\.\d(?= % (?:with the|without|\(one seed))", text)
    assert len(accuracies) == 3 and all(any(figure in line for line in printed) for figure in accuracies)


def test_tables_are_made_from_the_saved_figures():
    for table in (tables.table(), tables.table("h100_", tables.DENSITIES[1:])):
        assert len(table.splitlines()) > 3
        assert table in prose("docs/execution.md")
    assert len(tables.profile().splitlines()) > 10
    assert tables.profile() in prose("benchmarks/README.md")
    beside_torch = tables.versus_torch(tables.saved_cases("h200_versus_torch_vgg19"))
    perceptron = tables.masked_mlp(tables.saved_cases("masked_mlp"))
    assert tables.reading_images() in prose("benchmarks/README.md")
    assert tables.tpu() in prose("benchmarks/README.md") and tables.tpu_layers() in prose("benchmarks/README.md")
    assert len(tables.versus_torch_by_machine().splitlines()) == 2 + len(tables.NETWORKS)
    assert tables.versus_torch_by_machine() in prose("benchmarks/README.md")
    for table in (beside_torch, tables.versus_torch_on_cpu(), perceptron):
        assert len(table.splitlines()) > 10
        assert table in prose("benchmarks/README.md")
