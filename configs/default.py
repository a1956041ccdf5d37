"""What all experiments share: every field there is, with its meaning and the NCSN paper's value.

The other files in this directory start from this one and say what they change. Any field can be
overridden on the command line, as in `--config.training.batch_size=64`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults: NCSN as published in 2019."""
    config = ConfigDict()
    # Everything random in a run is a function of this seed and the step.
    config.seed = 0

    config.data = data = ConfigDict()
    # 'digits', 'image_folder', or a name that tensorflow-datasets knows.
    data.dataset = "cifar10"
    # Directory of the prepared datasets ('': $TFDS_DATA_DIR or ~/tensorflow_datasets), or of the images.
    data.data_dir = ""
    # Side of the images in pixels, and 1 (grey) or 3 (RGB).
    data.image_size = 32
    data.channels = 3
    # Side of the centre crop that is resized to image_size; -1: the largest square; 0: images fit as is.
    data.crop_size = 0
    # Mirror left to right with probability 1/2.
    data.random_flip = True
    # Spread each 8-bit value uniformly over its 1/256.
    data.dequantize = True
    # Whether the SDE, sigmas and samplers work on images in [-1, 1] instead of [0, 1]. For 'ncsnpp' only.
    data.centered = False

    config.model = model = ConfigDict()
    # 'ncsn', 'ncsnv2' (published for 32 and 64 pixels), 'ncsnv2_deeper' (128), 'ncsnv2_deepest' (256),
    # 'ncsn_simplified', or 'ncsnpp', which is NCSN++ and DDPM++ and wants training.sde.
    model.name = "ncsn"
    # Channels of the first stage; the deeper ones have twice as many.
    model.features = 128
    # 'instance++', or 'instance' for the plain one of 'ncsn' and 'ncsn_simplified'.
    model.normalization = "instance++"
    # The geometric noise ladder, in units of pixels in [0, 1], or [-1, 1] if centered. With training.sde='ve'
    # also the SDE's sigma_max and sigma_min. num_levels is also N of the discrete objectives.
    model.num_levels = 10
    model.sigma_begin = 1.0
    model.sigma_end = 0.01
    # Of training.sde='vp' and 'subvp'.
    model.beta_min = 0.1
    model.beta_max = 20.0
    # Weight of the old parameters in their moving average, from which samples are made; 0 is off.
    model.ema_decay = 0.0

    # The parts of model.name='ncsnpp', described with ncsn_jax.models.NCSNpp. The embedding follows from
    # training.sde: of sigma for the continuous 've', of the time for all others; and with 've' the output is
    # divided by sigma.
    config.ncsnpp = ncsnpp = ConfigDict()
    # Channels of every level, which has half the side of that before, as multiples of features.
    ncsnpp.ch_mult = (1, 2, 2, 2)
    ncsnpp.num_res_blocks = 4
    # Sides of the feature maps with attention.
    ncsnpp.attn_resolutions = (16,)
    ncsnpp.dropout = 0.1
    ncsnpp.fourier_scale = 16.0
    # 'biggan' or 'ddpm'.
    ncsnpp.resblock_type = "biggan"
    # Smooth when resampling.
    ncsnpp.fir = True
    ncsnpp.skip_rescale = True
    # 'none' or 'output_skip'; 'none', 'residual' or 'input_skip'.
    ncsnpp.progressive = "none"
    ncsnpp.progressive_input = "residual"
    ncsnpp.init_scale = 0.0

    config.training = training = ConfigDict()
    # 'none': the ladder of NCSN; 've', 'vp', 'subvp': the SDE of model.name='ncsnpp'.
    training.sde = "none"
    # With an SDE: times from 0 to 1, or the num_levels levels of its chain (SMLD for 've', DDPM for 'vp').
    training.continuous = False
    # With a continuous SDE: the weight g(t)^2 in place of the variance of the noise.
    training.likelihood_weighting = False
    # The mean over the elements of an image in place of half the sum: the loss times 2 / D. With
    # optim.eps and training.grad_clip it makes a difference.
    training.reduce_mean = False
    # 'dsm': denoising, 'ssm': sliced, 'sm': exact score matching (small images only).
    training.loss = "dsm"
    # Projections of each example in 'ssm'.
    training.num_projections = 1
    # p of the weight sigma^p with which a level enters the loss.
    training.anneal_power = 2.0
    # Over all devices.
    training.batch_size = 128
    # In how many parts, 1 or more, each device computes its share of a batch, one after another. More take
    # less memory; the steps are the same to rounding. batch_size is a multiple of devices x microbatches.
    training.microbatches = 1
    # Keep few activations for the backward pass and compute the others again: less memory, more time.
    training.remat = False
    # What the network computes in: 'float32', or 'bfloat16', whose activations are half as large (not on
    # CPUs, where it is slower). Parameters, noise, losses and the optimizer are float32.
    training.dtype = "float32"
    training.num_steps = 200_000
    # Optimizer steps in one compiled call. More than 1 pays on TPU and GPU; on a CPU it is slower.
    training.steps_per_call = 1
    # In steps; each a multiple of steps_per_call; 0 is off, except for checkpoints and logs.
    training.checkpoint_every = 5000
    training.log_every = 100
    training.sample_every = 5000
    # How many of the newest checkpoints stay.
    training.checkpoints_kept = 2
    # Those of steps that are multiples of it stay for good; a multiple of checkpoint_every; 0: of none.
    training.keep_every = 0
    # Largest global norm of the gradient; 0 is off.
    training.grad_clip = 0.0
    # How many steps in a row whose loss or gradient is not finite are left out before the run stops; 0 or
    # more. With more than 0, a run that stopped at such a step can go on.
    training.skip_nonfinite = 0

    config.optim = optim = ConfigDict()
    # Adam.
    optim.learning_rate = 1e-3
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    # Added to the gradient (L2).
    optim.weight_decay = 0.0
    # Steps of linear warm-up.
    optim.warmup_steps = 0

    config.sampling = sampling = ConfigDict()
    # 'annealed_langevin', 'predictor_corrector', 'probability_flow' or 'heun'. Every one samples from every
    # run: a ladder is taken for 've', and an SDE's network for a score of sigma.
    sampling.method = "annealed_langevin"
    # Of 'predictor_corrector': 'euler_maruyama', 'reverse_diffusion', 'ancestral' (not for 'subvp'),
    # 'probability_flow' or 'none'; 'langevin', 'annealed_langevin' (neither for 'subvp') or 'none'; the
    # corrector's signal-to-noise ratio, 0 without one, and its steps at each time.
    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "none"
    sampling.snr = 0.0
    sampling.corrector_steps = 1
    # Steps of 'predictor_corrector', and levels of 'heun', whose sigmas go from sigma_begin to sigma_end as
    # in Karras et al. (2022) with this rho; churn is S_churn there, 0 for the deterministic one.
    sampling.num_steps = 1000
    sampling.rho = 7.0
    sampling.churn = 0.0
    # The last time of 'predictor_corrector' and 'probability_flow', where x_t is taken for the image.
    sampling.end = 1e-5
    # Of the adaptive solver of 'probability_flow': relative and absolute tolerance, the factor of the
    # latents' standard deviation.
    sampling.rtol = 1e-5
    sampling.atol = 1e-5
    sampling.temperature = 1.0
    # Of 'annealed_langevin': the step size of Algorithm 1 at the last level, which is twice the step_lr of
    # the authors' code (2e-5); steps_per_level, clip and init are its as well.
    sampling.epsilon = 4e-5
    sampling.steps_per_level = 100
    # End with the expected clean image. 'predictor_corrector': without the noise of the last step.
    sampling.denoise = False
    # What the network computes in, 'float32' or 'bfloat16', also for likelihoods and latents.
    sampling.dtype = "float32"
    # Clip after every update to (low, high); () is off.
    sampling.clip = ()
    # Where the chains start. 'uniform': U[0, 1); 'normal': N(0, sigma_begin^2); 'centred_normal':
    # N(1/2, sigma_begin^2).
    sampling.init = "uniform"
    sampling.num_samples = 100
    # Images sampled, or judged, at once, over all devices. It does not change them.
    sampling.batch_size = 100
    # Images in the previews during training.
    sampling.preview_samples = 16
    # Also write the way of the first samples, as annealing.gif and filmstrip.png.
    sampling.gif = False
    # Names the directory samples/step_<step>_<name>, and those of the other modes likewise, to try several
    # settings on one checkpoint.
    sampling.name = ""

    # --mode=likelihood: bits per dimension of uniformly dequantized images.
    config.likelihood = likelihood = ConfigDict()
    # Of the data, 'train' or 'test', and how many of its images at most.
    likelihood.split = "test"
    likelihood.num_images = 10_000
    # The exact trace, which takes one derivative for each element of an image, or an unbiased estimate of it
    # from so many random projections.
    likelihood.exact = False
    likelihood.num_projections = 1
    # Of the adaptive solver; where x_t is taken for the image.
    likelihood.rtol = 1e-5
    likelihood.atol = 1e-5
    likelihood.end = 1e-5

    # --mode=interpolate: pairs of images, as in --mode=inpaint, and so many steps between their latents.
    # Tolerances, end and temperature are those of sampling.
    config.interpolation = interpolation = ConfigDict()
    interpolation.num_pairs = 6
    interpolation.num_steps = 8

    # --mode=classifier trains a classifier of noisy images, and --mode=classconditional samples with it.
    config.classifier = classifier = ConfigDict()
    classifier.features = 16
    classifier.num_steps = 1000
    classifier.batch_size = 128
    classifier.learning_rate = 3e-3
    # The class to sample, or -1 for all in turn.
    classifier.label = -1
    # Factor of the classifier's gradient; 1 is Bayes' rule, more is more of the class and less variety.
    classifier.scale = 1.0

    # --mode=inpaint, and --mode=colorize, which takes the images and numbers from here.
    config.inpainting = inpainting = ConfigDict()
    # 'left': the left half is observed; 'box': all but a random box; or an image file, in which what is
    # white (128 and above) is observed.
    inpainting.mask = "left"
    # A directory of images to complete, cropped and resized to fit; '': the data's test split.
    inpainting.images = ""
    inpainting.num_images = 8
    inpainting.num_completions = 6
    # End with exactly the observed pixels, instead of with noise of the last level on them.
    inpainting.keep_observed = True
    # Of 'annealed_langevin': 'paper': Algorithm 2; 'ncsn', 'ncsnv2': what the authors' code does.
    inpainting.scheme = "paper"
    return config
