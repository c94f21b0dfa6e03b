"""What training stores and sends, in bytes: ``python benchmarks/storage.py resnet50 vgg19 --densities 0.01 0.001``.

For each network and density the script prints the bytes of parameters, positions, Adam's state, the gradients that a
device sends in a step, and a checkpoint before compression, beside the dense network's. Nothing is trained. ``--save
NAME`` also writes the bytes to benchmarks/results/NAME.json. Needs the package installed, or ``PYTHONPATH=.``.
"""

import argparse

import jax
from flax import nnx
from record import describe_run, save

from dctps_jax import models, pruning
from dctps_jax.accounts.storage import NAMES, Account, storage_account
from dctps_jax.optimizers import make_optimizer
from dctps_jax.training.state import create_state


def account_of(network: str, density: float, num_classes: int) -> Account:
    """Return the storage account of a network with the offset and equally many weights a layer."""
    shapes = models.kernel_shapes(network, num_classes=num_classes)
    model = models.create_model(
        network,
        num_classes=num_classes,
        offset="dct",
        rngs=nnx.Rngs(0),
        supports=pruning.random_supports(jax.random.key(0), shapes, pruning.allocate(shapes, density, "epl")),
    )
    optimizer = make_optimizer("adam", 0.001, momentum=0.9, weight_decay=5e-4, fixup=models.is_fixup(network))
    graphs, state = create_state(model, optimizer)
    return storage_account(state, state, graphs.shapes, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--densities", nargs="+", type=float, default=[0.01, 0.001, 0.0001])
    parser.add_argument("--num_classes", type=int, default=100)
    parser.add_argument("--save", default="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    accounts = [
        {"network": network, "density": density, "bytes": account_of(network, density, arguments.num_classes)}
        for network in arguments.networks
        for density in arguments.densities
    ]
    print("kB of 1,000 bytes, in brackets the dense network's and the ratio of the sum of parameters and optimiser")
    print("| network | density | " + " | ".join(NAMES.values()) + " | parameters + Adam |")
    print("| --- | ---: | " + " | ".join("---:" for _ in NAMES) + " | ---: |")
    for entry in accounts:
        account = entry["bytes"]
        kept, dense = (
            sum(account[kind][side] for kind in ("parameters", "supports", "optimizer_state"))
            for side in ("this", "dense")
        )
        cells = " | ".join(f"{both['this'] / 1e3:,.1f} ({both['dense'] / 1e3:,.1f})" for both in account.values())
        print(f"| {entry['network']} | {entry['density']} | {cells} | 1/{dense / kept:.3g} |")
    save(arguments.save, describe_run(arguments) | {"accounts": accounts})


if __name__ == "__main__":
    main()
