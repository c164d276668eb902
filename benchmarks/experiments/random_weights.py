"""Write a model of the same shape as another, with random weights: training from scratch.

Configuration and tokenizer are the other model's; the weights are Transformers' own initialisation,
in float32.

    python benchmarks/experiments/random_weights.py MODELS/base-3m runs/random/model --seed 1
"""

import argparse
from pathlib import Path

import torch

from drpruning.common.errors import BadInput
from drpruning.models.loading import quiet_libraries
from drpruning.models.result import Origin, save_model


def main(arguments: list[str] | None = None) -> None:
    """Write the model that the arguments name; bad input ends with one message and status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=__doc__[__doc__.index("    python") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of the model that gives the shape")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args(arguments)
    try:
        write_random(args.model, args.output, args.seed)
    except BadInput as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def write_random(model: str, output: Path, seed: int) -> None:
    """Write a folder with the configuration and tokenizer of a model, and random weights.

    Raises:
        BadInput: The model cannot be read, or the output exists.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if output.exists():
        raise BadInput(f"{output} exists; name another folder, or remove it")
    quiet_libraries()
    origin = Origin.of(model, field="model")
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(origin.folder, trust_remote_code=False)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(made, origin, output)


if __name__ == "__main__":
    main()
