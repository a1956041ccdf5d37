"""Holds the table of all configuration fields: the values each allows, and its meaning.

`check` refuses a value that cannot work before anything is loaded or compiled. `ncsn_jax.app.rules` has the
rules between fields, and `ncsn_jax.app.reference` renders the table.
"""

import itertools
import math
import string
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import ml_collections

from ncsn_jax import inverse, models, objectives, sampling, training
from ncsn_jax._checks import MAX_FLOAT
from ncsn_jax.app import build, restoration, rules
from ncsn_jax.errors import UserError, show

METHODS = (
    "annealed_langevin",
    "predictor_corrector",
    "probability_flow",
    *build.SCHEDULED,
)

# The largest integer (steps are counted in int32), the smallest float32 above 0, and the largest below 1.
MAX_INTEGER, _SMALLEST, _BELOW_ONE = 2**31 - 1, 1.2e-38, 1 - 2**-24


# Whether a value is allowed, and the words after "must be" in the message if it is not.
Limit = tuple[Callable[[Any], bool], str]


class Field(NamedTuple):
    """A field: its types and their name, the limits on its value, and its meaning.

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


def _integer(
    low: int, meaning: str, high: int = MAX_INTEGER, changeable: bool = False, allowed: str = ""
):
    if high < MAX_INTEGER:
        limits = [_between(low, high, allowed or f"from {low} to {high}")]
    else:
        at_least = allowed or ("0 or more" if low == 0 else f"at least {low}")
        limits = [_between(low, math.inf, at_least), _between(low, high, f"at most {high}")]
    return Field((int,), "an integer", tuple(limits), meaning, changeable)


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
    allowed = "a tuple of integers from 1 to 4096, such as (1, 2)"
    integers = (lambda value: all(type(n) is int and 0 < n <= 4096 for n in value), allowed)
    return Field((list,), allowed, (integers, *limits), meaning)


def _is_clip(value: list) -> bool:
    numbers = all(isinstance(c, int | float) and not isinstance(c, bool) for c in value)
    return not value or (
        numbers and len(value) == 2 and -MAX_FLOAT <= value[0] < value[1] <= MAX_FLOAT
    )


def _are_widths(value: list) -> bool:
    numbers = all(isinstance(w, int | float) and 0.01 <= w <= _MAX_WIDTH for w in value)
    return not value or (numbers and len(value) == 2 and value[0] < value[1])


def _is_size(value: int | list) -> bool:
    sides = value if isinstance(value, list) else [value, value]
    return len(sides) == 2 and all(type(n) is int and 1 <= n <= 4096 for n in sides)


def _is_in_groups(features: int) -> bool:
    return features >= 4 and all(c % min(c // 4, 32) == 0 for c in (features, 2 * features))


_POSITIVE = _between(_SMALLEST, MAX_FLOAT, f"positive, from {_SMALLEST:g} to {MAX_FLOAT:g}")
_NOT_NEGATIVE = _between(0, MAX_FLOAT, f"from 0 to {MAX_FLOAT:g}")
_FRACTION = _between(0, _BELOW_ONE, "in [0, 1) as a float32")
_END = _between(1e-7, 0.5, "from 1e-7 to 0.5")
_TOLERANCE = _between(1e-6, 0.5, "from 1e-6, the least for float32, to 0.5")
_TABLE = ("edm", "vp", "ve")  # the columns of table 1
_DTYPES, _PRECISIONS = ("float32", "bfloat16"), ("default", "high", "highest")
_RESBLOCKS, _, _PROGRESSIVE, _PROGRESSIVE_INPUT = map(
    dict.fromkeys, zip(*models.ARCHITECTURES, strict=True)
)
_MAX_WIDTH = 0.28
_WIDTHS = f"() or two widths from 0.01 to {_MAX_WIDTH}, the smaller first"
_PAIR = "() or (low, high), both finite, low < high"
_INTERVAL = "() or (low, high), 0 <= low < high"
_NAME = frozenset(string.ascii_letters + string.digits + "-_.=")

# fmt: off
# Each section of a configuration: its purpose and its fields.
SECTIONS = {
    "": ("", {
        "seed": _integer(0, "Seed of the run: each of its random numbers is a function of the seed and the "
                         "step.", 2**32 - 1),
    }),
    "data": ("The images.", {
        "dataset": _text("'digits', 'image_folder', a name that tensorflow-datasets knows, or the file of an "
                         "array: 'FILE.npy', 'FILE.npz' or 'FILE.npz:KEY', which holds `[N, H, W]` or "
                         "`[N, H, W, C]`, uint8 or floating point."),
        "data_dir": _text("Directory of the prepared datasets or of the array's file. For 'image_folder', "
                          "the directory of images (PNG, JPEG, WebP, BMP, TIFF or GIF, also in .tar and .zip "
                          "files), or one .tar or .zip file. May be a URL, such as gs://BUCKET/PATH. "
                          "'': $TFDS_DATA_DIR or ~/tensorflow_datasets.", changeable=True),
        "image_size": Field((int, list), "a number of pixels or (height, width)", (
            (_is_size, "one or two integers from 1 to 4096"),
        ), "Side of the images, or their height and width. Arrays must have this size: they are not "
           "resized."),
        "channels": _integer(1, "1 for grey, 3 for RGB. Arrays may have any number.", 4096),
        "value_range": Field((list,), _PAIR, ((_is_clip, _PAIR),),
                             "For floating-point arrays, which need it: the values that map to 0 and 1 in "
                             "the network, and to black and white in pictures. Up to half of the values may "
                             "lie outside. Samples are written in the same units. () for bytes."),
        "holdout": _number(_FRACTION, "Fraction of a folder's or an array's images in its test split, chosen "
                           "by a hash of their content."),
        "crop_size": _integer(-1, "Side of the centre crop that is resized to image_size; for a rectangle, "
                              "the shorter side. -1: the largest crop of that shape; 0: no crop, the images "
                              "already fit.", allowed="-1, 0 or a number of pixels"),
        "cache_bytes": _integer(0, "A dataset that takes less than this when decoded is decoded once, into a "
                                "file that is mapped into memory. Images of a larger dataset are decoded on "
                                "demand. Does not change the results.", 10**18, changeable=True),
        "prefetch": _integer(1, "Batches to decode in advance if images are decoded on demand. Bounds the "
                             "memory they take.", 1000, changeable=True),
        "workers": _integer(-1, "Threads that decode images. -1: one for each core that the host can "
                            "spare; 0: none, each batch is decoded when it is needed.", 1000,
                            changeable=True),
        "background": _integer(0, "Grey value behind the transparent pixels of image files, from 0 (black) "
                               "to 255 (white).", 255),
        "random_flip": _switch("Flip each image left to right with probability 1/2."),
        "dequantize": _switch("Spread each 8-bit value uniformly over an interval of 1/256. Does not change "
                              "floating-point data."),
        "centered": _switch("The SDE, the sigmas and the samplers work on images in [-1, 1], not [0, 1]. "
                            "For 'ncsnpp' only."),
        "labels": _switch("Train the score of an image given its class, and without. For datasets with "
                          "labels."),
    }),
    "model": ("The network and its noise.", {
        "name": _choice(build.MODELS, "'ncsnv2' was published for 32 and 64 pixels, its deeper variants for "
                        "128 and 256. 'ncsnpp' is NCSN++ and DDPM++ and needs training.sde."),
        "features": _integer(2, "Channels of the first stage.", 1024),
        "normalization": _choice(models.ncsn.NORMALIZATIONS, "'instance' is plain instance normalization, "
                                 "for 'ncsn' and 'ncsn_simplified'."),
        "num_levels": _integer(2, "Levels of the geometric noise ladder; N of the discrete objectives.",
                               100_000),
        "sigma_begin": _number(None, "Largest sigma, in units of pixels in [0, 1], or [-1, 1] if centered; "
                               "sigma_max of training.sde='ve' and 'edm'."),
        "sigma_end": _number(None, "Smallest sigma; sigma_min of training.sde='ve' and 'edm'."),
        "beta_min": _number(_POSITIVE, "For training.sde='vp' and 'subvp', and EDM's 'vp': beta at time 0."),
        "beta_max": _number(_POSITIVE, "For training.sde='vp' and 'subvp', and EDM's 'vp': beta at time 1."),
        "ema_decay": _number(_FRACTION, "Decay of the EMA of the parameters, which samples use; 0 turns it "
                             "off."),
        "ema_halflife": _integer(0, "In place of ema_decay: the EMA's half-life in images; 0 turns it off."),
        "ema_rampup": _number(_between(0, 1000, "from 0 to 1000"), "With ema_halflife: the half-life is at "
                              "most this multiple of the images seen so far; 0 turns it off."),
        "ema_power": Field((list,), _WIDTHS, ((_are_widths, _WIDTHS),),
                           "Widths of two averages of the parameters, from which --mode=average makes one of "
                           "any width. Each takes as much memory as an EMA. () keeps none."),
        "num_classes": _integer(1, "With data.labels: the dataset's number of classes.", 100_000),
        "label_dropout": _number(_between(_SMALLEST, _BELOW_ONE, "above 0 and below 1"),
                                 "With data.labels: probability of training an example without its class."),
    }),
    "ncsnpp": ("The parts of model.name='ncsnpp'; see `ncsn_jax.models.NCSNpp`. With the continuous 've' "
               "the network is conditioned on sigma, with 'edm' on c_noise, otherwise on the time. With 've' "
               "its output is divided by sigma.", {
        "ch_mult": _tuple("Channels of each level, as multiples of features. Each level has half the side of "
                          "the level before it.",
                          (lambda v: 1 <= len(v) <= 12, "one to twelve integers, one for each level")),
        "num_res_blocks": _integer(1, "Residual blocks of each level.", 100),
        "attn_resolutions": _tuple("Sides of the feature maps with attention; for rectangles, the shorter "
                                   "sides."),
        "dropout": _number(_FRACTION, "Probability of dropping an activation in training."),
        "fourier_scale": _number(_POSITIVE, "Standard deviation of the frequencies that embed log sigma."),
        "resblock_type": _choice(_RESBLOCKS, "BigGAN's residual blocks, or DDPM's blocks and resampling."),
        "fir": _switch("Smooth when resampling."),
        "skip_rescale": _switch("Divide the sum of a skip connection by the square root of 2."),
        "progressive": _choice(_PROGRESSIVE, "How the levels form the output."),
        "progressive_input": _choice(_PROGRESSIVE_INPUT, "How the levels receive the input."),
        "init_scale": _number(_NOT_NEGATIVE, "Scale of the initial weights of the last convolutions."),
    }),
    "edm": ("The denoiser and the loss of training.sde='edm' (Karras et al., 2022, table 1).", {
        "preconditioning": _choice(_TABLE, "Coefficients c_skip, c_out, c_in and c_noise around the network. "
                                   "With 'vp', the times are those of model.beta_*."),
        "noise": _choice(_TABLE, "Distribution of sigma and weight of the loss in training: log-normal, of "
                         "the times of 'vp' with model.beta_*, or of 've' between model.sigma_end and "
                         "sigma_begin."),
        "sigma_data": _number(_POSITIVE, "For 'edm': standard deviation of the images in [-1, 1]."),
        "p_mean": _number(_between(-10, 10, "from -10 to 10"), "For noise='edm': mean of ln sigma."),
        "p_std": _number(_between(1e-3, 5, "from 0.001 to 5"), "For noise='edm': standard deviation of ln "
                         "sigma."),
    }),
    "training": ("Objective and training loop. Numbers of steps must be multiples of steps_per_call.", {
        "sde": _choice(("none", *build.SDES, "edm"), "'none': the noise ladder of NCSN. 'edm': 'ncsnpp' as "
                       "a denoiser, see edm.*. Otherwise the SDE of 'ncsnpp'."),
        "continuous": _switch("With an SDE: train on times from 0 to 1, not on the num_levels levels of its "
                              "discrete chain (SMLD for 've', DDPM for 'vp')."),
        "likelihood_weighting": _switch("With a continuous SDE: weight the loss by g(t)^2, not by the "
                                        "noise's variance."),
        "augment": _number(_between(0, 1, "from 0 to 1"), "For 'ncsnpp': probability of each random "
                           "transformation of an image, which the network receives as a label. Half of the "
                           "images are also flipped. 0 turns all off. See `ncsn_jax.augmentation`."),
        "reduce_mean": _switch("Take the mean over an image's elements, not half the sum. This multiplies "
                               "the loss by 2 / D, which matters for optim.eps and grad_clip."),
        "loss": _choice(objectives.LOSSES, "Score matching: denoising, sliced, or exact (small images)."),
        "num_projections": _integer(1, "Random projections per example for 'ssm'.", 1000),
        "anneal_power": _number(None, "p of the weight sigma^p of a level in the loss."),
        "batch_size": _integer(1, "Examples per step: a multiple of devices x microbatches."),
        "microbatches": _integer(1, "Parts into which each device splits its share of a batch (gradient "
                                 "accumulation). More parts take less memory; only rounding differs.",
                                 changeable=True),
        "remat": _switch("Keep few activations for the backward pass and recompute the others: less memory, "
                         "more time.", changeable=True),
        "dtype": _choice(_DTYPES, "Type in which the network computes. bfloat16 halves the activations "
                         "(slower on CPUs). Parameters, noise, losses and the optimizer stay float32."),
        "precision": _choice(_PRECISIONS, "Precision of the score network's float32 products: 1, 3 or 6 "
                             "passes of bfloat16 on TPUs; TF32, TF32 or float32 on GPUs; always float32 on "
                             "CPUs."),
        "num_steps": _integer(1, "Optimizer steps of the whole run.", changeable=True),
        "steps_per_call": _integer(1, "Optimizer steps per compiled call. More than 1 helps on TPUs and "
                                   "GPUs, not on CPUs."),
        "checkpoint_every": _integer(1, "Steps between checkpoints.", changeable=True),
        "log_every": _integer(1, "Steps between lines of the log.", changeable=True),
        "sample_every": _integer(0, "Steps between previews; 0 turns them off.", changeable=True),
        "checkpoints_kept": _integer(1, "How many of the newest checkpoints to keep.", changeable=True),
        "keep_every": _integer(0, "Keep checkpoints at multiples of this step for good; 0 turns this off.",
                               changeable=True),
        "keep_best": _switch("Keep the best checkpoint for good: the one with the smallest distance that "
                             "evaluation.every has found.", changeable=True),
        "grad_clip": _number(_NOT_NEGATIVE, "Largest global norm of the gradient; 0 turns clipping off."),
        "skip_nonfinite": _integer(0, "How many steps in a row with a non-finite loss or gradient to skip "
                                   "before the run stops. If above 0, a stopped run can be resumed.",
                                   changeable=True),
    }),
    "optim": ("The optimizer; see `ncsn_jax.training.make_optimizer`. The defaults are those of Adam.", {
        "name": _choice(training.OPTIMIZERS, "'adamw': Adam with decoupled weight decay. 'muon': "
                        "orthogonalized momentum for the kernels, AdamW for the rest. 'schedule_free': Adam "
                        "without a schedule, whose own average samples use."),
        "learning_rate": _number(_POSITIVE, "Learning rate after the warm-up."),
        "beta1": _number(_FRACTION, "Decay of the first moment; for 'schedule_free', the share of its "
                         "average in the parameters that are trained."),
        "beta2": _number(_FRACTION, "Decay of the second moment."),
        "eps": _number(_POSITIVE, "Added to the square root of the second moment."),
        "weight_decay": _number(_NOT_NEGATIVE, "Multiple of the parameters: for 'adam' added to the gradient "
                                "(L2), else times the learning rate subtracted from them. 'adamw' with 0 is "
                                "'adam'."),
        "warmup_steps": _integer(0, "Steps of linear warm-up; 0 turns it off."),
        "schedule": _choice(("constant", "cosine", "rsqrt"), "'cosine' multiplies the learning rate of step "
                            "k by (1 + cos(pi k / training.num_steps)) / 2. A run then keeps its "
                            "training.num_steps. 'rsqrt' divides it by sqrt(max(k / decay_after, 1))."),
        "decay_after": _integer(1, "For 'rsqrt': step after which the learning rate decays. 70,000 is the "
                                "t_ref of EDM2-S on ImageNet-512, whose steps have 2,048 images."),
    }),
    "sampling": ("Samplers. Every method works with every run: a noise ladder counts as 've', and an SDE's "
                 "network as a score of sigma.", {
        "method": _choice(METHODS, "The sampler."),
        "predictor": _choice((*sampling.PREDICTORS, "none"), "For 'predictor_corrector'; not 'ancestral' "
                             "with 'subvp'."),
        "corrector": _choice((*sampling.CORRECTORS, "none"), "For 'predictor_corrector'; 'none' with "
                             "'subvp'."),
        "snr": _number(_NOT_NEGATIVE, "The corrector's signal-to-noise ratio; 0 without a corrector."),
        "corrector_steps": _integer(1, "Corrector steps at each time."),
        "num_steps": _integer(1, "Steps of 'predictor_corrector', 'heun', 'euler' and 'dpm_solver'.",
                              rules.MAX_CHAIN),
        "schedule": _choice(build.SCHEDULES, "For 'heun', 'euler' and 'dpm_solver': the sigmas from "
                            "sigma_begin to sigma_end; with 'sde', those of the SDE's times from 1 to end."),
        "rho": _number(_between(1, 100, "from 1 to 100"), "Of schedule 'karras' (Karras et al., 2022): 1 is "
                       "uniform, large numbers are almost exponential."),
        "churn": _number(_between(0, 1000, "from 0 to 1000"), "For 'heun' and 'euler': S_churn; 0 adds no "
                         "noise."),
        "order": _integer(1, "Order of 'dpm_solver'.", 3),
        "stochastic": _switch("For 'dpm_solver': solve the reverse SDE, which adds noise, not the flow."),
        "end": _number(_END, "Last time of 'predictor_corrector' and 'probability_flow', at which x_t is the "
                       "image, and of schedule 'sde'."),
        "rtol": _number(_TOLERANCE, "For 'probability_flow': relative tolerance of the solver."),
        "atol": _number(_TOLERANCE, "For 'probability_flow': absolute tolerance of the solver."),
        "temperature": _number(_POSITIVE, "For 'probability_flow': factor that scales the latents."),
        "epsilon": _number(_POSITIVE, "For 'annealed_langevin': step size of Algorithm 1 at the last level, "
                           "twice the step_lr of the authors' code (2e-5)."),
        "steps_per_level": _integer(1, "For 'annealed_langevin': T of Algorithm 1."),
        "denoise": _switch("End with the expected clean image. 'predictor_corrector' leaves out the noise of "
                           "the last step."),
        "label": Field((list,), "a tuple of classes, such as (3,)", (
            (lambda value: all(type(n) is int and n >= 0 for n in value), "a tuple of classes, such as (3,)"),
        ), "With data.labels: the classes that samples have in turn; () takes all. In inpainting, "
           "colorization and restoration, () gives no class."),
        "guidance": _number(_between(-1000, 1000, "from -1000 to 1000"),
                            "Scale of guidance: 0 is the score without the class, or that of the guide; 1 is "
                            "the score given the class; more makes samples more typical of it and less "
                            "varied. Other numbers than 0 and 1 take two network evaluations for one."),
        "guidance_interval": Field((list,), _INTERVAL, (
            (lambda value: _is_clip(value) and (not value or value[0] >= 0), _INTERVAL),
        ), "Smallest and largest sigma with guidance; () for all."),
        "guide": _text("Work directory of a run that guides in place of the score without the class: a "
                       "smaller or less trained one (autoguidance)."),
        "guide_step": _integer(-1, "Step of the guide's checkpoint; -1: the newest.", allowed="-1 or a step"),
        "dtype": _choice(_DTYPES, "Type in which the network computes, also for likelihoods and latents."),
        "precision": _choice(_PRECISIONS, "As training.precision; also for likelihoods and latents."),
        "clip": Field((list,), _PAIR, ((_is_clip, _PAIR),),
                      "For 'annealed_langevin': clip to (low, high) after every update; () turns it off."),
        "init": _choice(("uniform", "normal", "centred_normal"), "Start of 'annealed_langevin': U[0, 1), "
                        "N(0, sigma_begin^2) or N(1/2, sigma_begin^2)."),
        "num_samples": _integer(1, "Number of samples."),
        "batch_size": _integer(1, "Images to sample or evaluate at once, over all devices. Does not change "
                               "the results."),
        "preview_samples": _integer(1, "Images in each preview during training."),
        "gif": _switch("Also show how the first samples evolve, in annealing.gif and filmstrip.png."),
        "name": _text("Names the directory samples/step_STEP_NAME, and likewise those of the other modes.",
                      (lambda v: len(v) <= 200 and not set(v) - _NAME,
                            "at most 200 letters, digits, '-', '_', '.' and '='")),
        "step": _integer(-1, "Step of the checkpoint to sample from, or to use otherwise; -1: the newest.",
                         allowed="-1 or a step"),
    }),
    "likelihood": ("--mode=likelihood: bits per dimension of uniformly dequantized images; for "
                   "floating-point data, of the density in the data's units, which may be negative.", {
        "split": _choice(("train", "test"), "Split of the data."),
        "num_images": _integer(1, "Number of images at most."),
        "exact": _switch("Compute the exact trace, which takes one derivative per element of an image, not "
                         "an unbiased estimate."),
        "num_projections": _integer(1, "Random projections of the estimate.", 1000),
        "rtol": _number(_TOLERANCE, "Relative tolerance of the solver."),
        "atol": _number(_TOLERANCE, "Absolute tolerance of the solver."),
        "end": _number(_END, "Time at which x_t is taken as the image."),
    }),
    "evaluation": ("--mode=evaluate and --mode=statistics: how good the samples are.", {
        "num_samples": _integer(10, "Number of samples. Published FIDs are of 50,000.", 10**7),
        "every": _integer(0, "Training evaluates the first 1,000 samples, or num_samples if fewer, every so "
                          "many steps: by the classifier, or else in pixels. 0 turns this off."),
        "features": _choice(("inception", "classifier", "pixels"), "Features to compare: those of FID's "
                            "network, whose weights are downloaded at first use; those of a small "
                            "classifier, which is trained on the labelled data; or the pixels."),
        "weights": _text("File of the weights of FID's network, .pth or .npz; '': the published ones."),
        "reference": _text("File of statistics to compare with, .npz with 'mu' and 'sigma'; '': the training "
                           "split."),
        "sweep": _text("Values of fields, such as 'sampling.num_steps=10,20 sampling.churn=0,10': evaluate "
                       "every combination; '': one evaluation."),
    }),
    "interpolation": ("--mode=interpolate: pairs of the images of --mode=inpaint. Tolerances, end and "
                      "temperature are those of sampling.", {
        "num_pairs": _integer(1, "Number of pairs.", 10_000),
        "num_steps": _integer(2, "Images from one latent to the other, both included.", 1000),
    }),
    "classifier": ("--mode=classifier trains a classifier of noisy images; --mode=classconditional samples "
                   "with it.", {
        "features": Field((int,), "an integer", (
            (lambda v: v <= 1024, "at most 1024"),
            (_is_in_groups, "divisible into normalization groups, such as 4, 8, 16 or 32"),
        ), "Channels of the first stage."),
        "num_steps": _integer(1, "Optimizer steps."),
        "batch_size": _integer(1, "Examples per step."),
        "learning_rate": _number(_POSITIVE, "Learning rate of Adam."),
        "label": _integer(-1, "Class to sample, or -1 for all in turn.", allowed="-1 or a class"),
        "scale": _number(_NOT_NEGATIVE, "Factor of the classifier's gradient. 1 is Bayes' rule; more makes "
                         "samples more typical of their class and less varied."),
    }),
    "average": ("--mode=average: an average of the parameters whose width is chosen after training.", {
        "width": _number(_between(1e-3, _MAX_WIDTH, f"from 0.001 to {_MAX_WIDTH}"), "Its width: the "
                         "standard deviation of its weights over the steps, relative to their number."),
    }),
    "plan": ("--mode=plan: an estimate of what a run takes.", {
        "topology": _text("'local': the devices of this machine; or a TPU topology, such as 'v5e:4x4', which "
                          "may be elsewhere."),
    }),
    "inpainting": ("--mode=inpaint. --mode=colorize uses the same images and numbers.", {
        "mask": _text("'left': the left half is observed; 'box': all but a random box; or an image file, in "
                      "which white (128 and above) is observed, resized to fit."),
        "images": _text("Directory of images to complete, cropped and resized to fit, or the file of an "
                        "array, as data.dataset; '': the test split."),
        "num_images": _integer(1, "Number of images."),
        "num_completions": _integer(1, "Completions of each image.", 10_000),
        "keep_observed": _switch("End with exactly the observed pixels, without the last level's noise on "
                                 "them."),
        "scheme": _choice(("paper", "ncsn", "ncsnv2"), "For 'annealed_langevin': Algorithm 2, or what "
                          "the authors' code does."),
    }),
    "restore": ("--mode=restore: images from measurements y = A x + n, n ~ N(0, noise^2 I), of images x in "
                "[0, 1].", {
        "operator": _choice(restoration.OPERATORS, "A. 'downsample': means of blocks of pixels; 'mask': some "
                            "pixels; 'blur': a convolution; 'fourier': some Fourier coefficients; 'grey': "
                            "the mean over the channels."),
        "factor": _number(_between(1, 4096, "from 1 to 4096"), "For 'downsample': side of the blocks, an "
                          "integer. With mask='random': one of so many values is measured."),
        "kernel": _text("For 'blur': standard deviation of a normal kernel in pixels, or the file of an "
                        "array [K, L] with odd sides."),
        "mask": _text("For 'mask' and 'fourier': 'random', drawn for each image, or the file of an array of "
                      "booleans [H, W] or [N, H, W], True where measured; frequency 0 comes first. For "
                      "'mask' also 'left', 'box' or an image file, as inpainting.mask."),
        "noise": _number(_NOT_NEGATIVE, "Standard deviation of n."),
        "method": _choice(inverse.METHODS, "Approximation of the likelihood's score; see "
                          "`ncsn_jax.inverse.posterior_score`. 'dps' needs noise."),
        "images": _text("Clean images to measure and restore, as inpainting.images; '': the test split."),
        "measurements": _text("File of an array of measurements to restore, [N, ...], in place of images. "
                              "For 'fourier' complex, or with a last axis of real and imaginary parts."),
        "num_images": _integer(1, "Number of images or measurements."),
        "num_samples": _integer(1, "Samples of each image. The range of 19 is an exact 90 % interval.",
                                10_000),
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
    *(
        "sampling.",
        "inpainting.",
        "restore.",
        "likelihood.",
        "evaluation.",
        "interpolation.",
        "classifier.",
        "average.",
        "plan.",
    ),
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
            what = "is not a field" if name in flat else "is missing"
            raise UserError(
                f"config.{name} {what}: docs/configuration.md lists all fields; a run of another version of "
                "this program may have different ones"
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
