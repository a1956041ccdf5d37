"""Holds the table of all configuration fields: what each may hold, and what it means.

`check` refuses a value that cannot work before anything is loaded or compiled. `ncsn_jax.app.rules` has the
rules between fields, and `ncsn_jax.app.reference` renders the table.
"""

import itertools
import string
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import ml_collections

from ncsn_jax import models, objectives, sampling
from ncsn_jax._checks import MAX_FLOAT
from ncsn_jax.app import build, rules
from ncsn_jax.errors import UserError, show

METHODS = ("annealed_langevin", "predictor_corrector", "probability_flow", "heun")

# The largest integer (steps are counted in int32), the smallest float32 above 0, and the largest below 1.
MAX_INTEGER, _SMALLEST, _BELOW_ONE = 2**31 - 1, 1.2e-38, 1 - 2**-24


# Whether a value is allowed, and the words that follow "must be" where it is not.
Limit = tuple[Callable[[Any], bool], str]


class Field(NamedTuple):
    """A field: its types and their name, what its value must satisfy, and what it means.

    `changeable` fields may differ between two invocations on one work directory, because the parameters at a
    given step do not depend on them.
    """

    types: tuple[type, ...]
    kind: str
    limits: tuple[Limit, ...]
    meaning: str
    changeable: bool = False


def _between(low: float, high: float, allowed: str) -> Limit:
    return lambda value: low <= value <= high, allowed


def _whole(
    low: int, meaning: str, high: int = MAX_INTEGER, changeable: bool = False, allowed: str = ""
):
    allowed = allowed or ("0 or more" if low == 0 else f"at least {low}")
    limits = (
        (lambda value: value >= low, allowed),
        (lambda value: value <= high, f"at most {high}"),
    )
    return Field((int,), "a whole number", limits, meaning, changeable)


def _number(limit: Limit | None, meaning: str) -> Field:
    return Field((int, float), "a number", (limit,) if limit else (), meaning)


def _switch(meaning: str, changeable: bool = False) -> Field:
    return Field((bool,), "True or False", (), meaning, changeable)


def _text(meaning: str, *limits: Limit, changeable: bool = False) -> Field:
    return Field((str,), "a string", limits, meaning, changeable)


def _choice(choices: Collection[str], meaning: str) -> Field:
    limit = (lambda value: value in choices, " or ".join(map(repr, choices)))
    return Field((str,), "a string", (limit,), meaning)


def _tuple(meaning: str, *limits: Limit) -> Field:
    allowed = "a tuple of whole numbers, such as (1, 2)"
    whole = (lambda value: all(type(n) is int and 0 < n <= 4096 for n in value), allowed)
    return Field((list,), allowed, (whole, *limits), meaning)


def _is_clip(value: list) -> bool:
    sound = all(isinstance(c, int | float) and not isinstance(c, bool) for c in value)
    return not value or (
        sound and len(value) == 2 and -MAX_FLOAT <= value[0] < value[1] <= MAX_FLOAT
    )


def _is_size(value: int | list) -> bool:
    sides = value if isinstance(value, list) else [value, value]
    return len(sides) == 2 and all(type(n) is int and 1 <= n <= 4096 for n in sides)


def _is_in_groups(features: int) -> bool:
    return features >= 4 and all(c % min(c // 4, 32) == 0 for c in (features, 2 * features))


_POSITIVE = _between(
    _SMALLEST, MAX_FLOAT, f"a finite number above 0, from {_SMALLEST:g} to {MAX_FLOAT:g}"
)
_NOT_NEGATIVE = _between(0, MAX_FLOAT, f"0 or more, at most {MAX_FLOAT:g}")
_FRACTION = _between(0, _BELOW_ONE, "in [0, 1), also in float32")
_END = _between(1e-7, 0.5, "from 1e-7 to 0.5")
_TOLERANCE = _between(1e-6, 0.5, "from 1e-6, which float32 allows, to 0.5")
_DTYPES, _PRECISIONS = ("float32", "bfloat16"), ("default", "high", "highest")
_RESBLOCKS, _, _PROGRESSIVE, _PROGRESSIVE_INPUT = map(
    dict.fromkeys, zip(*models.ARCHITECTURES, strict=True)
)
_PAIR = "() or (low, high), finite, low < high"
_NAME = frozenset(string.ascii_letters + string.digits + "-_.")

# fmt: off
# For each section of a configuration: what it is for, and its fields.
SECTIONS = {
    "": ("", {
        "seed": _whole(0, "All random numbers of a run are functions of this seed and the step.", 2**32 - 1),
    }),
    "data": ("The images.", {
        "dataset": _text("'digits', 'image_folder', or a name that tensorflow-datasets knows; or a file of "
                         "an array `[N, H, W]` or `[N, H, W, C]`, uint8 or floating point: 'FILE.npy', "
                         "'FILE.npz' or 'FILE.npz:KEY'."),
        "data_dir": _text("Directory of the prepared datasets, or of the array's file. Of 'image_folder', "
                          "that of the images (PNG, JPEG, WebP, BMP, TIFF or GIF, also in .tar and .zip "
                          "files), or one such .tar or .zip file. May be a URL, such as gs://BUCKET/PATH. "
                          "'': $TFDS_DATA_DIR or ~/tensorflow_datasets.", changeable=True),
        "image_size": Field((int, list), "a number of pixels or (height, width)", (
            (_is_size, "one or two numbers from 1 to 4096"),
        ), "Side of the images, or their height and width. Arrays must have it: they are not resized."),
        "channels": _whole(1, "1 for grey, 3 for RGB. Arrays may have any number.", 4096),
        "value_range": Field((list,), _PAIR, ((_is_clip, _PAIR),),
                             "For arrays of floating point, which need it: the values that are 0 and 1 to "
                             "the network, and black and white in pictures. Up to half of them may lie "
                             "outside. Samples are written in the same units. () for bytes."),
        "holdout": _number(_FRACTION, "Fraction of the images, chosen by a hash of their content, that is "
                           "the test split of folders and arrays."),
        "crop_size": _whole(-1, "Side of the centre crop that is resized to image_size; of a rectangle, the "
                            "shorter one. -1: the largest square, or rectangle of that shape; 0: the images "
                            "fit as they are.", allowed="-1, 0 or a number of pixels"),
        "cache_bytes": _whole(0, "Images that take less when decoded are decoded once, and kept in a file "
                              "that is mapped into memory. Those of a larger dataset are decoded whenever "
                              "they are needed. This changes no result.", 10**18, changeable=True),
        "prefetch": _whole(1, "Of such a larger dataset: how many batches are decoded in advance, which "
                           "bounds the memory for them.", 1000, changeable=True),
        "workers": _whole(-1, "Threads that decode images. -1: one for each core that the host can "
                          "spare; 0: none, a batch is decoded when it is needed.", 1000, changeable=True),
        "background": _whole(0, "Of people's own images: the grey value behind transparent pixels. 0: black; "
                             "255: white.", 255),
        "random_flip": _switch("Mirror an image left to right with probability 1/2."),
        "dequantize": _switch("Spread each 8-bit value uniformly over its 1/256. Floating-point data stay "
                              "as they are."),
        "centered": _switch("The SDE, the sigmas and the samplers work on images in [-1, 1], not [0, 1]. "
                            "For 'ncsnpp' only."),
    }),
    "model": ("The network and its noise.", {
        "name": _choice(build.MODELS, "'ncsnv2' is published for 32 and 64 pixels, its deeper kinds for 128 "
                        "and 256. 'ncsnpp' is NCSN++ and DDPM++ and needs training.sde."),
        "features": _whole(2, "Channels of the first stage.", 1024),
        "normalization": _choice(models.ncsn.NORMALIZATIONS, "'instance' is the plain one, for 'ncsn' and "
                                 "'ncsn_simplified'."),
        "num_levels": _whole(2, "Levels of the geometric ladder; N of the discrete objectives.", 100_000),
        "sigma_begin": _number(None, "Largest sigma, in units of pixels in [0, 1], or [-1, 1] if centered; "
                               "sigma_max of training.sde='ve'."),
        "sigma_end": _number(None, "Smallest sigma; sigma_min of training.sde='ve'."),
        "beta_min": _number(_POSITIVE, "For training.sde='vp' and 'subvp': beta at time 0."),
        "beta_max": _number(_POSITIVE, "For training.sde='vp' and 'subvp': beta at time 1."),
        "ema_decay": _number(_FRACTION, "Weight of the old average in the EMA of the parameters, from which "
                             "samples are made; 0 is off."),
    }),
    "ncsnpp": ("The parts of model.name='ncsnpp'; see `ncsn_jax.models.NCSNpp`. Under the continuous 've' "
               "the network is conditioned on sigma, otherwise on the time. Under 've' its output is divided "
               "by sigma.", {
        "ch_mult": _tuple("Channels of each level, as multiples of features. A level has half the side of "
                          "the one before.",
                          (lambda v: 1 <= len(v) <= 12, "one to twelve numbers, one for each level")),
        "num_res_blocks": _whole(1, "Residual blocks of each level.", 100),
        "attn_resolutions": _tuple("Sides of the feature maps with attention; of rectangles, the shorter "
                                   "ones."),
        "dropout": _number(_FRACTION, "Probability with which an activation is dropped in training."),
        "fourier_scale": _number(_POSITIVE, "Standard deviation of the frequencies that embed log sigma."),
        "resblock_type": _choice(_RESBLOCKS, "Residual blocks of BigGAN, or blocks and resampling of DDPM."),
        "fir": _switch("Smooth when resampling."),
        "skip_rescale": _switch("Divide the sum of a skip connection by the root of 2."),
        "progressive": _choice(_PROGRESSIVE, "How the output is made of the levels."),
        "progressive_input": _choice(_PROGRESSIVE_INPUT, "How the levels see the input."),
        "init_scale": _number(_NOT_NEGATIVE, "Scale of the initial weights of the last convolutions."),
    }),
    "training": ("Objective and training loop. Numbers of steps are multiples of steps_per_call.", {
        "sde": _choice(("none", *build.SDES), "'none': the ladder of NCSN. Otherwise the SDE of 'ncsnpp'."),
        "continuous": _switch("With an SDE: times from 0 to 1, not the num_levels levels of its chain (SMLD "
                              "for 've', DDPM for 'vp')."),
        "likelihood_weighting": _switch("With a continuous SDE: weight g(t)^2, not the noise's variance."),
        "reduce_mean": _switch("Mean over the elements of an image, not half the sum: the loss times 2 / D. "
                               "It matters for optim.eps and grad_clip."),
        "loss": _choice(objectives.LOSSES, "Score matching: denoising, sliced, or exact (small images)."),
        "num_projections": _whole(1, "Projections of each example in 'ssm'.", 1000),
        "anneal_power": _number(None, "p of the weight sigma^p with which a level enters the loss."),
        "batch_size": _whole(1, "Examples in a step: a multiple of devices x microbatches."),
        "microbatches": _whole(1, "Parts in which each device computes its share of a batch, one after "
                               "another. More take less memory; only rounding differs.", changeable=True),
        "remat": _switch("Keep few activations for the backward pass and compute the others again: less "
                         "memory, more time.", changeable=True),
        "dtype": _choice(_DTYPES, "What the network computes in. Activations in bfloat16 are half as large "
                         "(slower on CPUs). Parameters, noise, losses and the optimizer are float32."),
        "precision": _choice(_PRECISIONS, "Of the score network's products of float32: on TPUs 1, 3 or 6 "
                             "passes of bfloat16; on GPUs TF32, TF32 or float32; on CPUs always float32."),
        "num_steps": _whole(1, "Optimizer steps of the whole run.", changeable=True),
        "steps_per_call": _whole(1, "Optimizer steps in one compiled call. More than 1 pays on TPU and GPU, "
                                 "not on a CPU."),
        "checkpoint_every": _whole(1, "Steps between two checkpoints.", changeable=True),
        "log_every": _whole(1, "Steps between two lines of the log.", changeable=True),
        "sample_every": _whole(0, "Steps between two previews; 0 is off.", changeable=True),
        "checkpoints_kept": _whole(1, "How many of the newest checkpoints stay.", changeable=True),
        "keep_every": _whole(0, "Checkpoints of steps that are multiples of it stay for good; 0 is off.",
                             changeable=True),
        "grad_clip": _number(_NOT_NEGATIVE, "Largest global norm of the gradient; 0 is off."),
        "skip_nonfinite": _whole(0, "How many steps in a row without finite loss and gradient are left out "
                                 "before the run stops. With more than 0, a stopped run can go on.",
                                 changeable=True),
    }),
    "optim": ("Adam.", {
        "learning_rate": _number(_POSITIVE, "Step size after the warm-up."),
        "beta1": _number(_FRACTION, "Decay of the first moment."),
        "beta2": _number(_FRACTION, "Decay of the second moment."),
        "eps": _number(_POSITIVE, "Added to the root of the second moment."),
        "weight_decay": _number(_NOT_NEGATIVE, "Multiple of the parameters added to the gradient (L2)."),
        "warmup_steps": _whole(0, "Steps of linear warm-up; 0 is off."),
    }),
    "sampling": ("Samplers. Each method samples from every run: a ladder is taken for 've', and the network "
                 "of an SDE for a score of sigma.", {
        "method": _choice(METHODS, "The sampler."),
        "predictor": _choice((*sampling.PREDICTORS, "none"), "Of 'predictor_corrector'; not 'ancestral' for "
                             "'subvp'."),
        "corrector": _choice((*sampling.CORRECTORS, "none"), "Of 'predictor_corrector'; 'none' for 'subvp'."),
        "snr": _number(_NOT_NEGATIVE, "The corrector's signal-to-noise ratio; 0 without a corrector."),
        "corrector_steps": _whole(1, "The corrector's steps at each time."),
        "num_steps": _whole(1, "Steps of 'predictor_corrector'; levels of 'heun'.", rules.MAX_CHAIN),
        "rho": _number(_between(1, 100, "from 1 to 100"), "Of 'heun': rho of Karras et al. (2022), whose "
                       "sigmas go from sigma_begin to sigma_end."),
        "churn": _number(_between(0, 1000, "0 or more, at most 1000"), "Of 'heun': S_churn; 0: no noise."),
        "end": _number(_END, "Of 'predictor_corrector' and 'probability_flow': the last time, where x_t is "
                       "taken for the image."),
        "rtol": _number(_TOLERANCE, "Of 'probability_flow': relative tolerance of the solver."),
        "atol": _number(_TOLERANCE, "Of 'probability_flow': absolute tolerance of the solver."),
        "temperature": _number(_POSITIVE, "Of 'probability_flow': factor of the latents."),
        "epsilon": _number(_POSITIVE, "Of 'annealed_langevin': step size of Algorithm 1 at the last level, "
                           "twice the step_lr of the authors' code (2e-5)."),
        "steps_per_level": _whole(1, "Of 'annealed_langevin': T of Algorithm 1."),
        "denoise": _switch("End with the expected clean image. 'predictor_corrector': without the noise of "
                           "the last step."),
        "dtype": _choice(_DTYPES, "What the network computes in, also for likelihoods and latents."),
        "precision": _choice(_PRECISIONS, "As training.precision, also for likelihoods and latents."),
        "clip": Field((list,), _PAIR, ((_is_clip, _PAIR),),
                      "Of 'annealed_langevin': clip to (low, high) after every update; () is off."),
        "init": _choice(("uniform", "normal", "centred_normal"), "Start of 'annealed_langevin': U[0, 1), "
                        "N(0, sigma_begin^2) or N(1/2, sigma_begin^2)."),
        "num_samples": _whole(1, "How many samples are made."),
        "batch_size": _whole(1, "Images sampled, or judged, at once, over all devices. It does not change "
                             "them."),
        "preview_samples": _whole(1, "Images in the previews during training."),
        "gif": _switch("Also write the way of the first samples, as annealing.gif and filmstrip.png."),
        "name": _text("Names the directory samples/step_STEP_NAME, and those of the other modes likewise.",
                      (lambda v: len(v) <= 100 and not set(v) - _NAME,
                            "made of letters, digits, '-', '_' and '.', 100 at most")),
    }),
    "likelihood": ("--mode=likelihood: bits per dimension of uniformly dequantized images; of floating-point "
                   "data, those of the density in their own units, which may be negative.", {
        "split": _choice(("train", "test"), "Of the data."),
        "num_images": _whole(1, "How many of its images, at most."),
        "exact": _switch("The exact trace, which takes one derivative for each element of an image, not an "
                         "unbiased estimate."),
        "num_projections": _whole(1, "Random projections of the estimate.", 1000),
        "rtol": _number(_TOLERANCE, "Relative tolerance of the solver."),
        "atol": _number(_TOLERANCE, "Absolute tolerance of the solver."),
        "end": _number(_END, "The time at which x_t is taken for the image."),
    }),
    "interpolation": ("--mode=interpolate: pairs of images, as in --mode=inpaint. Tolerances, end and "
                      "temperature are those of sampling.", {
        "num_pairs": _whole(1, "How many pairs.", 10_000),
        "num_steps": _whole(2, "Images from one latent to the other, both included.", 1000),
    }),
    "classifier": ("--mode=classifier trains a classifier of noisy images; --mode=classconditional samples "
                   "with it.", {
        "features": Field((int,), "a whole number", (
            (lambda v: v <= 1024, "at most 1024"),
            (_is_in_groups, "4, 8, 16, 32 or another number that is normalized in groups"),
        ), "Channels of the first stage."),
        "num_steps": _whole(1, "Optimizer steps."),
        "batch_size": _whole(1, "Examples in a step."),
        "learning_rate": _number(_POSITIVE, "Of Adam."),
        "label": _whole(-1, "The class to sample, or -1 for all in turn.", allowed="-1 or a class"),
        "scale": _number(_NOT_NEGATIVE, "Factor of the classifier's gradient. 1 is Bayes' rule; with more, "
                         "samples are more of the class and vary less."),
    }),
    "plan": ("--mode=plan: what a run takes.", {
        "topology": _text("'local': the devices at hand; or a TPU topology, such as 'v5e:4x4', which need "
                          "not be at hand."),
    }),
    "inpainting": ("--mode=inpaint, and --mode=colorize, which takes images and numbers from here.", {
        "mask": _text("'left': the left half is observed; 'box': all but a random box; or an image file, in "
                      "which white (128 and above) is observed, resized to fit."),
        "images": _text("Directory of images to complete, cropped and resized to fit, or a file of an "
                        "array, as data.dataset; '': the test split."),
        "num_images": _whole(1, "How many images."),
        "num_completions": _whole(1, "Completions of each image.", 10_000),
        "keep_observed": _switch("End with exactly the observed pixels, not with noise of the last level on "
                                 "them."),
        "scheme": _choice(("paper", "ncsn", "ncsnv2"), "Of 'annealed_langevin'. Algorithm 2, or what "
                          "the authors' code does."),
    }),
}
# fmt: on

FIELDS: dict[str, Field] = {
    f"{section}.{name}".lstrip("."): field
    for section, (_, fields) in SECTIONS.items()
    for name, field in fields.items()
}

# Fields, and prefixes of fields, that may differ between two invocations on one work directory. The
# sections named here concern what a trained network is used for.
CHANGEABLE = (
    *(name for name, field in FIELDS.items() if field.changeable),
    *("sampling.", "inpainting.", "likelihood.", "interpolation.", "classifier.", "plan."),
)


def flatten(config: ml_collections.ConfigDict) -> dict:
    """Returns the fields as a dictionary from dotted names to plain values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def check(config: ml_collections.ConfigDict, num_devices: int | None = None) -> None:
    """Raises UserError for the first field that cannot work on this many devices, or on all at hand."""
    try:
        flat = flatten(config)
    # A configuration is the user's code: it may hold itself, or fields without a value.
    except Exception as error:
        raise UserError(f"--config: {type(error).__name__}: {error}") from None
    for name in [*FIELDS, *flat]:
        if name not in flat or name not in FIELDS:
            what = "is no field" if name in flat else "is missing"
            raise UserError(
                f"config.{name} {what}: docs/configuration.md lists all fields; a run of another version of "
                "this program may have others"
            )

    def require(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"config.{name}={show(flat[name])} must be {allowed}")

    for name, field in FIELDS.items():
        value = flat[name]
        is_type = isinstance(value, field.types) and (
            bool in field.types or not isinstance(value, bool)
        )
        require(name, is_type, field.kind)
        for holds, allowed in field.limits:
            require(name, holds(value), allowed)
    found = rules.batches_on_devices(config, num_devices or jax.device_count())
    for name, holds, allowed in itertools.chain(found, *(rule(config) for rule in rules.RULES)):
        require(name, holds, allowed)
