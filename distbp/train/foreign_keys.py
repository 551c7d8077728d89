"""What other libraries call what a recipe has, and where it is to be written here."""

from __future__ import annotations

from collections.abc import Collection

_OPTIMIZER = "{} belongs to the optimizer: optim.{}, in a recipe `optimizer: {}`"
_RATE = _OPTIMIZER.format("the learning rate", "Adam({value})", "{{adam: {{learning_rate: {value}}}}}")
_MOMENTUM = _OPTIMIZER.format("momentum", "Momentum(0.01, {value})", "{{momentum: {{momentum: {value}}}}}")
_DECAY = _OPTIMIZER.format("weight decay", "AdamW(0.01, weight_decay={value})", "{{adamw: {{weight_decay: {value}}}}}")
_WEIGHTS = "weights of classes and rows are not available yet; let each class have as many rows as it shall count for"
_MODEL = (
    "layers are the model: [nn.Dense(128), nn.ReLU(), nn.Dense(10)], in a recipe `model: [{{dense: 128}}, relu, ...]`"
)
_VALIDATION = "rows to validate on are given to fit(..., validation=0.1), in a recipe `data: {{validation: 0.1}}`"
_STOPPING = "when to stop early is one option: early_stopping={{'patience': 5}}"
_WORKERS = "processes are started from outside (mpirun -n 4, distbp train --workers 4) or with engine='ray', workers=4"
_ALWAYS = "leave it out: it is done always"

HINTS = {
    _RATE: "lr learning_rate learning_rate_init eta eta0 step_size",
    _MOMENTUM: "momentum nesterovs_momentum",
    _DECAY: "weight_decay l2 alpha reg_lambda",
    _WEIGHTS: "class_weight class_weights sample_weight sample_weights",
    _MODEL: "hidden_layer_sizes hidden_layers layers network module activation units dropout",
    _VALIDATION: "validation validation_split validation_fraction validation_data eval_set",
    _STOPPING: "patience n_iter_no_change tol min_delta monitor",
    _WORKERS: "workers n_jobs num_workers n_workers nproc nproc_per_node num_processes",
    _ALWAYS: "shuffle metrics restore_best_weights",
    "write epochs={value}": "max_iter n_epochs num_epochs nb_epoch max_epochs num_train_epochs iterations",
    "write seed={value}": "random_state random_seed rng",
    "write batch_size={value}": "minibatch_size per_device_train_batch_size train_batch_size",
    "write optimizer='adam'": "solver optim optimiser updater",
    "write loss='categorical_cross_entropy'": "criterion loss_fn loss_function objective",
    "write schedule={{'cosine': {{'warmup_steps': 50}}}}": "scheduler lr_scheduler lr_schedule learning_rate_schedule",
    "write clip_norm={value}": "clipnorm grad_clip max_grad_norm gradient_clip_val gradient_clip_norm",
    "write dtype='float32'": "precision floatx",
    "write scaling='standard'": "normalize normalise standardize scaler",
    "distbp trains on processor cores: leave it out": "device gpu gpus cuda use_gpu accelerator",
    "progress is told to a watcher: fit(..., watcher=...); the command has --quiet and --every": (
        "verbose callbacks silent progress_bar"
    ),
}
"""Where it belongs, and what others call it."""

_BY_NAME = {name: hint for hint, names in HINTS.items() for name in names.split()}

_NAMES = {
    "squared_error": "mse mseloss meansquarederror l2 l2loss reg:squarederror",
    "categorical_cross_entropy": (
        "crossentropy crossentropyloss ce categoricalcrossentropy sparsecategoricalcrossentropy logloss nll nllloss "
        "softmaxcrossentropy multi:softmax multi:softprob"
    ),
    "binary_cross_entropy": "bce bceloss bcewithlogits bcewithlogitsloss binarycrossentropy binary:logistic logistic",
    "dense": "linear fc fullyconnected",
    "sigmoid": "logistic",
    "silu": "swish",
    "momentum": "sgdmomentum heavyball",
    "nesterov": "nag",
    "cosine": "cosineannealing cosineannealinglr cosinedecay",
    "exponential": "exponentiallr exponentialdecay",
    "step": "steplr",
}
"""What other libraries call losses, layers, optimizers and schedules, in small letters, without - and _."""


def name_for(given: str, names: Collection[str]) -> str | None:
    """Return that of ``names`` which others call ``given``."""
    plain = given.lower().replace("_", "").replace("-", "")
    return next((name for name in names if plain in _NAMES.get(name, "").split()), None)


def synonym(key: str, names: list[str]) -> str | None:
    """Return that of ``names`` which others call ``key``."""
    groups = [group.split() for group in HINTS.values()]
    return next((name for name in names if any({name, key.lower()} <= set(group) for group in groups)), None)


def hint(key: str, value: object) -> str | None:
    """Return where ``key`` of another library belongs; None for a key that none has."""
    text = _BY_NAME.get(key.lower())
    return None if text is None else text.format(value=value if isinstance(value, (int, float, str)) else "...")
