"""Print the page ``docs/configuration.md``: ``python -m dctps_jax.cli.configuration > docs/configuration.md``."""

import shutil
import textwrap
from itertools import groupby

from dctps_jax.command import command
from dctps_jax.defaults import FIELDS
from dctps_jax.field import Field

HEAD = """# Configuration

This page is made from `dctps_jax/fields/` by `python -m dctps_jax.cli.configuration > docs/configuration.md`.

A config file is a Python file with a function `get_config()`. It takes the defaults, which are the paper's protocol,
and changes fields:

```python
from dctps_jax.defaults import get_config as get_defaults


def get_config():
    config = get_defaults()
    config.model.name = "resnet50"
    return config
```

`configs/` has one file for each experiment. The command line of `train.py` and `sweep.py` sets any field:

```bash
python train.py --config configs/resnet50_cifar100.py --workdir runs/sparse --config.pruning.density=0.001
python train.py --config configs/resnet50_cifar100.py --workdir runs/no_offset --config.model.offset=None
python train.py --config configs/resnet50_cifar100.py --workdir runs/sgd --config.optimizer.name=sgd \\
    --config.optimizer.learning_rate=0.1 "--config.optimizer.milestones=(120, 160)"
python train.py --config configs/resnet50_cifar100.py --workdir runs/layers \\
    "--config.pruning.layer_densities=(('fc', 0.5), ('layer1.*', 0.01))"
```

All fields are checked before anything is compiled or written. Path patterns are as in the shell: `layer1.*` matches
every layer whose path begins with `layer1.`; a run prints the paths.

A run's directory belongs to one config. The command that resumes a run may change the fields marked "yes" under
*resume*: they do not change the results, or change them by rounding only. It may raise the fields marked "grows", also
when the run is finished. The run then
[goes on as if it had started with the new value](experiments.md#runs-that-grow).
"""


def page() -> str:
    """Return the page: a table of the fields for each section of the config."""
    parts = [HEAD]
    for section, names in groupby(FIELDS, key=lambda name: name.rpartition(".")[0]):
        parts.append(f"\n## {f'`{section}`' if section else 'The run'}\n\n")
        parts.append("| field | default | allowed | resume | meaning |\n| --- | --- | --- | --- | --- |\n")
        parts.extend(_row(name, FIELDS[name]) for name in names)
    return "".join(parts)


def _row(name: str, field: Field) -> str:
    cells = (f"`{name}`", f"`{field.default!r}`", _allowed(field), _resume(field), field.help)
    return f"| {' | '.join(cells)} |\n"


def _resume(field: Field) -> str:
    return "grows" if field.grows else "yes" if field.resume else ""


def _allowed(field: Field) -> str:
    if field.choices:
        names = ", ".join(f"`{name or repr('')}`" for name in field.choices)
        names += f"; {field.allowed.words}" if field.allowed else ""
        return f"None, {names}" if field.optional else names
    return field.allowed.words if field.allowed else field.type_words


def help_of_fields() -> str:
    """Return all fields as options of the command line, with their meaning, as a terminal shows them."""
    width = min(100, shutil.get_terminal_size().columns)
    lines = []
    for name, field in FIELDS.items():
        text = f"{field.help} ({_allowed(field)})".replace("`", "")
        lines.append(f"  --config.{name}={field.default!r}")
        lines.extend(textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


@command("configuration")
def main() -> None:
    print(page(), end="")


if __name__ == "__main__":
    main()
