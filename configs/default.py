"""Sets the defaults of all experiments: every field, with the NCSN paper's value.

`docs/configuration.md` says what each field means and what it may hold. The other files in this directory
start from these defaults and change some. Override any field on the command line, as in
`--config.training.batch_size=64`.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """Returns the defaults: NCSN as published in 2019."""
    config = ConfigDict()
    config.seed = 0

    config.data = data = ConfigDict()
    data.dataset = "cifar10"
    data.data_dir = ""
    data.image_size = FieldReference(32, field_type=object)  # or (height, width)
    data.channels = 3
    data.value_range = ()  # or (low, high) for floating-point data
    data.holdout = 0.0
    data.crop_size = 0  # -1: the largest square
    data.background = 255
    data.cache_bytes = 4 * 10**9
    data.prefetch = 4
    data.workers = -1  # all spare cores
    data.random_flip = True
    data.dequantize = True
    data.centered = False
    data.labels = False

    config.model = model = ConfigDict()
    model.name = "ncsn"
    model.features = 128
    model.normalization = "instance++"
    model.num_levels = 10
    model.sigma_begin = 1.0
    model.sigma_end = 0.01
    model.beta_min = 0.1
    model.beta_max = 20.0
    model.ema_decay = 0.0
    model.ema_halflife = 0  # images
    model.ema_rampup = 0.0
    model.ema_power = ()  # or two widths, such as (0.05, 0.1)
    # For data.labels = True.
    model.num_classes = 10
    model.label_dropout = 0.1

    # For model.name = "ncsnpp".
    config.ncsnpp = ncsnpp = ConfigDict()
    ncsnpp.ch_mult = (1, 2, 2, 2)
    ncsnpp.num_res_blocks = 4
    ncsnpp.attn_resolutions = (16,)
    ncsnpp.dropout = 0.1
    ncsnpp.fourier_scale = 16.0
    ncsnpp.resblock_type = "biggan"
    ncsnpp.fir = True
    ncsnpp.skip_rescale = True
    ncsnpp.progressive = "none"
    ncsnpp.progressive_input = "residual"
    ncsnpp.init_scale = 0.0

    # For training.sde = "edm".
    config.edm = edm = ConfigDict()
    edm.preconditioning = "edm"  # or vp, ve
    edm.noise = "edm"  # or vp, ve
    edm.sigma_data = 0.5
    edm.p_mean = -1.2
    edm.p_std = 1.2

    config.training = training = ConfigDict()
    training.sde = "none"
    training.continuous = False
    training.likelihood_weighting = False
    training.augment = 0.0
    training.reduce_mean = False
    training.loss = "dsm"
    training.num_projections = 1
    training.anneal_power = 2.0
    training.batch_size = 128
    training.microbatches = 1
    training.remat = False
    training.dtype = "float32"
    training.precision = "default"
    training.num_steps = 200_000
    training.steps_per_call = 1
    training.checkpoint_every = 5000
    training.log_every = 100
    training.sample_every = 5000
    training.checkpoints_kept = 2
    training.keep_every = 0
    training.keep_best = False
    training.grad_clip = 0.0
    training.skip_nonfinite = 0

    config.optim = optim = ConfigDict()
    optim.name = "adam"  # or adamw, muon, schedule_free
    optim.learning_rate = 1e-3
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.warmup_steps = 0
    optim.schedule = "constant"  # or cosine, rsqrt
    optim.decay_after = 70_000

    config.sampling = sampling = ConfigDict()
    sampling.method = "annealed_langevin"
    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "none"
    sampling.snr = 0.0
    sampling.corrector_steps = 1
    sampling.num_steps = 1000
    sampling.schedule = "karras"
    sampling.rho = 7.0
    sampling.churn = 0.0
    sampling.order = 2
    sampling.stochastic = False
    sampling.end = 1e-5
    sampling.rtol = 1e-5
    sampling.atol = 1e-5
    sampling.temperature = 1.0
    sampling.epsilon = 4e-5  # twice the step_lr of the authors' code
    sampling.steps_per_level = 100
    sampling.denoise = False
    sampling.label = ()  # all in turn
    sampling.guidance = 1.0
    sampling.guidance_interval = ()  # or (low, high)
    sampling.guide = ""
    sampling.guide_step = -1
    sampling.dtype = "float32"
    sampling.precision = "default"
    sampling.clip = ()  # or (low, high)
    sampling.init = "uniform"
    sampling.num_samples = 100
    sampling.batch_size = 100
    sampling.preview_samples = 16
    sampling.gif = False
    sampling.name = ""
    sampling.step = -1

    config.evaluation = evaluation = ConfigDict()
    evaluation.num_samples = 50_000
    evaluation.every = 0
    evaluation.features = "inception"  # or classifier, pixels
    evaluation.weights = ""
    evaluation.reference = ""
    evaluation.sweep = ""

    config.likelihood = likelihood = ConfigDict()
    likelihood.split = "test"
    likelihood.num_images = 10_000
    likelihood.exact = False
    likelihood.num_projections = 1
    likelihood.rtol = 1e-5
    likelihood.atol = 1e-5
    likelihood.end = 1e-5

    config.interpolation = interpolation = ConfigDict()
    interpolation.num_pairs = 6
    interpolation.num_steps = 8

    config.classifier = classifier = ConfigDict()
    classifier.features = 16
    classifier.num_steps = 1000
    classifier.batch_size = 128
    classifier.learning_rate = 3e-3
    classifier.label = -1
    classifier.scale = 1.0

    config.average = average = ConfigDict()
    average.width = 0.1

    config.plan = plan = ConfigDict()
    plan.topology = "local"

    config.inpainting = inpainting = ConfigDict()
    inpainting.mask = "left"
    inpainting.images = ""
    inpainting.num_images = 8
    inpainting.num_completions = 6
    inpainting.keep_observed = True
    inpainting.scheme = "paper"

    config.restore = restore = ConfigDict()
    restore.operator = "downsample"  # or mask, blur, fourier, grey
    restore.factor = 2.0
    restore.kernel = "1.0"  # pixels, or FILE.npy
    restore.mask = "random"
    restore.noise = 0.05
    restore.method = "mmps"
    restore.images = ""
    restore.measurements = ""
    restore.num_images = 8
    restore.num_samples = 19  # their range is an exact 90 % interval
    return config
