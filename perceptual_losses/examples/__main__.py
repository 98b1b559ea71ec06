"""``python -m perceptual_losses.examples``: train VAEs with the losses and look at the results."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from perceptual_losses._images.picture import Reading
from perceptual_losses.compare.options import background

from .vae import MODELS, OUTPUTS

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

MODEL_FLAGS = {
    "kl_weight": tuple(MODELS),
    "level_weights": ("msssim",),
    "ms_ssim_weight": ("msssim",),
    "layers": ("dfc",),
    "weights": ("dfc",),
    "alpha": ("cvae",),
    "beta": ("cvae",),
}
"""The options that are passed on to models, and the models that take each."""


def positive(text: str) -> int:
    """The whole number in a text, from 1 upwards."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive: pass 1 or more")
    return number


def whole(text: str) -> int:
    """The whole number in a text, from 0 upwards."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative: pass 0 or more")
    return number


def seed(text: str) -> int:
    """The number in a text, from 0 to the largest seed that torch takes."""
    number = whole(text)
    if number >= 2**64:
        raise argparse.ArgumentTypeError(f"{number} is too large: pass at most {2**64 - 1}")
    return number


def rate(text: str) -> float:
    """The number in a text, above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive: pass a number above 0")
    return number


def folder(text: str) -> Path:
    """The folder of a path, which need not exist yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file: pass a folder")
    return path


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options, or the exit that argparse makes of wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m perceptual_losses.examples")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_train(commands)
    _add_sample(commands)
    _add_reconstruct(commands)
    return parser.parse_args(argv)


def _add_command(
    commands: Commands, name: str, summary: str, description: str = ""
) -> argparse.ArgumentParser:
    """Adds a command; options without a default are absent unless they are given."""
    return commands.add_parser(
        name,
        help=summary,
        description=description or None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )


def _add_demo(commands: Commands) -> None:
    """Adds the command `demo`."""
    parser = _add_command(
        commands,
        "demo",
        "train a VAE on squared error, on MS-SSIM and on L1 + MS-SSIM, and compare them",
        "Trains a VAE three times, with the same seed, data and number of steps, and compares the "
        "models on held-out photos. Exits with 1 if MS-SSIM does not give more SSIM and MS-SSIM "
        "than squared error, or L1 + MS-SSIM not more MS-SSIM than squared error.",
    )
    parser.add_argument("--steps", type=positive, default=2000, help="updates of each model")
    parser.add_argument("--batch-size", type=positive, default=32, help="images for each update")
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the weights, the order and the noise"
    )
    parser.add_argument("--out", type=folder, default=Path("runs/demo"), help="folder to write to")


def _add_train(commands: Commands) -> None:
    """Adds the command `train`."""
    parser = _add_command(
        commands, "train", "train a model on photos, a folder of images or a data set"
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    _add_data(parser, trains=True)
    parser.add_argument("--image-size", type=positive, help="side in pixels; else the data's")
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), help="1 for grey, 3 for colour; else the data's"
    )
    parser.add_argument("--output-activation", choices=OUTPUTS, default="sigmoid")
    parser.add_argument("--steps", type=positive, default=2000, help="updates in all")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="images for each update, of all processes"
    )
    parser.add_argument("--lr", type=rate, default=1e-3, help="Adam's learning rate")
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the weights, the order and the noise"
    )
    _add_models(parser)
    parser.add_argument(
        "--eval-every",
        type=positive,
        help="steps between evaluations; else those of an epoch, 100 or more",
    )
    parser.add_argument(
        "--save-every", type=positive, default=500, help="steps between checkpoints"
    )
    parser.add_argument("--workers", type=whole, default=0, help="processes that prepare batches")
    parser.add_argument("--out", type=folder, help="folder to write to; else runs/MODEL")
    parser.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on from the checkpoint in --out, if there is one",
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="CHECKPOINT",
        help="begin with the weights of another training, of any model, loss or rate",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the models."""
    parser.add_argument(
        "--kl-weight", type=float, help="weight of the KL divergence; else the model's"
    )
    parser.add_argument(
        "--level-weights",
        type=float,
        nargs="+",
        help="msssim: weights of the levels; else those of Wang et al.",
    )
    parser.add_argument("--ms-ssim-weight", type=float, help="msssim: its share; L1 has the rest")
    parser.add_argument(
        "--layers",
        choices=("dfc-123", "dfc-345"),
        help="dfc: layers of the paper; dfc-123 by default",
    )
    parser.add_argument(
        "--weights",
        help="dfc: a path, or random for features of no meaning; else imagenet",
    )
    parser.add_argument("--alpha", type=float, help="cvae: weight of the squared error")
    parser.add_argument("--beta", type=float, help="cvae: weight of 1 - SSIM")


def _add_sample(commands: Commands) -> None:
    """Adds the command `sample`."""
    parser = _add_command(commands, "sample", "draw new images from a trained model")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a training's checkpoint.pt")
    parser.add_argument("--rows", type=positive, default=8, help="a model with classes has its own")
    parser.add_argument("--columns", type=positive, default=8)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png")


def _add_reconstruct(commands: Commands) -> None:
    """Adds the command `reconstruct`."""
    parser = _add_command(
        commands, "reconstruct", "what a trained model makes of images it has not seen"
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    _add_data(parser, trains=False)
    parser.add_argument("--columns", type=positive, default=8)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png")


def _add_data(parser: argparse.ArgumentParser, *, trains: bool) -> None:
    """Adds the options that choose the data and read files."""
    text = "photos, cifar10, celeba, mnist, or a folder of images"
    own = "" if trains else "; else what the model was trained with"
    parser.add_argument(
        "--data",
        default="photos" if trains else argparse.SUPPRESS,
        help=text if trains else f"{text}, or one image{own}",
    )
    parser.add_argument(
        "--root", type=folder, default=Path("data"), help="where data sets are downloaded to"
    )
    parser.add_argument(
        "--background",
        type=background,
        default="white" if trains else argparse.SUPPRESS,
        metavar="COLOUR",
        help=f"puts transparent images on white, black or #rrggbb{own}",
    )
    parser.add_argument(
        "--data-range",
        type=rate,
        metavar="N",
        help="highest possible value in files, such as 4095; else that of their bits",
    )


def reading_of(options: argparse.Namespace) -> Reading:
    """The choices that image files leave open."""
    given = vars(options)
    chosen = {name: given[name] for name in ("data_range", "background") if name in given}
    return replace(Reading(), **chosen)


def demo(options: argparse.Namespace) -> int:
    """Trains three models and compares them; returns the exit code."""
    from .demo import demo, losses, table, unexpected
    from .train import make_folder

    with refusals():
        make_folder(options.out)
    metrics = demo(
        steps=options.steps, batch_size=options.batch_size, seed=options.seed, out=options.out
    )
    print(f"\nMeans over held-out photos, the best with a star:\n\n{table(metrics)}")
    print(f"\nBehind the best:\n\n{losses(metrics)}")
    print(f"\nPictures, curves and numbers are in {options.out}.")
    for sentence in unexpected(metrics):
        print(f"NOT as expected after {options.steps} steps: {sentence}.", file=sys.stderr)
    return 1 if unexpected(metrics) else 0


def train(options: argparse.Namespace) -> int:
    """Trains one model on any data; returns the exit code."""
    from .data import IMAGE_SIZES, load
    from .processes import first_process_first, processes
    from .squares import Form
    from .train import DivergedError, StoppedError, Training

    given = vars(options)
    out = given.get("out", Path("runs", options.model))
    own = {name: given[name] for name in MODEL_FLAGS if name in given}
    for name in own:
        if options.model not in MODEL_FLAGS[name]:
            flag, owner = name.replace("_", "-"), MODEL_FLAGS[name][0]
            raise RefusedError(f"--{flag} is for --model {owner}, not {options.model}")
    if own.get("weights") == "random":
        own["weights"] = None
    with processes():
        with refusals(), first_process_first():
            form = Form(
                given.get("image_size", IMAGE_SIZES.get(options.data, 64)),
                given.get("channels", 1 if options.data == "mnist" else 3),
                OUTPUTS[options.output_activation][1],
            )
            training = Training(
                options.model,
                {**own, "output_activation": options.output_activation},
                load(options.data, form, options.root, reading_of(options)),
                out,
                steps=options.steps,
                batch_size=options.batch_size,
                seed=options.seed,
                learning_rate=options.lr,
                evaluate_every=given.get("eval_every"),
                save_every=options.save_every,
                existing="resume" if options.resume else "refuse",
                workers=options.workers,
                init=given.get("init"),
            )
        if training.writes and training.first >= training.steps:
            print(
                f"The training in {out} has had {training.first} steps, and --steps is "
                f"{training.steps}: pass more to go on."
            )
        try:
            metrics = training.run()
        except StoppedError as error:
            if training.writes:
                print(error, file=sys.stderr)
            return 130
        except DivergedError as error:
            if training.writes:
                print(f"error: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            left = f"; what was saved before is in {out}" if training.checkpoint.exists() else ""
            raise RefusedError(f"{error}{left}") from error
    if training.writes:
        psnr, ssim, ms_ssim = metrics
        print(f"held out: PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, MS-SSIM {ms_ssim:.4f}")
        print(f"The checkpoint, metrics and pictures are in {out}.")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Writes a picture of a model's new images; returns the exit code."""
    from . import checkpoints, pictures

    with refusals():
        model = checkpoints.model_of(checkpoints.load(options.checkpoint))
        picture = pictures.samples(
            model, rows=options.rows, columns=options.columns, seed=options.seed
        )
        pictures.save(picture, options.out)
    rows = model.num_classes or options.rows
    print(f"{rows * options.columns} new images are in {options.out}.")
    return 0


def reconstruct(options: argparse.Namespace) -> int:
    """Writes a picture of images and a model's reconstructions; returns the exit code."""
    from . import checkpoints, pictures
    from .data import count, load, single
    from .squares import Form

    given = vars(options)
    with refusals():
        state = checkpoints.load(options.checkpoint)
        model = checkpoints.model_of(state)
        form = Form(model.image_size, model.in_channels, model.data_range)
        name = given.get("data", state["data"])
        reading = reading_of(argparse.Namespace(**{**state["reading"], **given}))
        if Path(name).is_file():
            data = single(Path(name), form, reading)
        else:
            data = load(name, form, options.root, reading)
        if model.num_classes and data.classes != state["classes"]:
            raise RefusedError(
                f"the model knows the classes {state['classes']} and {data.name} has "
                f"{data.classes}: pass --data with the same"
            )
        images, labels = pictures.some(data, min(options.columns, count(data.held_out)))
        pictures.save(pictures.reconstructions(model, images, labels), options.out)
    made = f"Images of {data.name} and reconstructions, {len(images)} of each"
    print(f"{made}, are in {options.out}.")
    return 0


COMMANDS = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "reconstruct": reconstruct,
}


class RefusedError(Exception):
    """An option cannot be used; the message says what to pass instead."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors of a command's preparations into refusals, which have no traceback."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise RefusedError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = parse_arguments(argv)
    try:
        return COMMANDS[options.command](options)
    except ModuleNotFoundError as error:
        print(
            f'{error.name} is not installed: pip install "perceptual-losses[examples]"',
            file=sys.stderr,
        )
    except (RefusedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
