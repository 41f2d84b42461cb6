"""Every option on one page: value, bounds, unit and reason. Other configs import this one and set a few fields.

Change a field from the command line with --config.<field>=<value>, e.g. --config.optimizer.learning_rate=3e-4.
A size is (height, width) in pixels. A step is one update of the weights.
"""

from ml_collections import ConfigDict

from configs import validation
from configs.validation import Field

FIELDS: dict[str, Field] = {
    'num_steps': Field(40_000, at_least=1),
    # Images per step, over all devices of all hosts: results do not depend on their number.
    'global_batch': Field(16, at_least=1),
    # Workdir of another run to start from, by its best checkpoint. What does not fit is listed and left as it is, e.g.
    # the head of a model for other classes.
    'init_from': Field(''),
    'seed': Field(2019, at_least=0, at_most=2**32 - 1),  # of weights, order and augmentation
    # 'float16' comes with a dynamic loss scale, 'float64' is there to prove equalities. Weights, loss, normalisation
    # statistics and metrics stay in at least float32.
    'precision': Field('float32', choices=('float32', 'bfloat16', 'float16', 'float64')),
    # What is learnt: 'train_ids' (the scored classes) or 'label_ids' (every id, void too).
    'labels': Field('train_ids', choices=('train_ids', 'label_ids')),
    #
    # Data and augmentation
    'data.train_splits': Field(('train',), check=validation.names),  # read as one, e.g. ('train', 'train_extra')
    'data.eval_split': Field('validation'),
    # Image and label are first resized to this; (0, 0): they stay as stored.
    'data.resize': Field((0, 0), check=validation.size_or_zeros),
    # Of images, when data.resize or eval.resize is set.
    'data.resize_method': Field('bilinear', choices=('bilinear', 'nearest')),
    'data.crop': Field((512, 1024), check=validation.size),  # what the model is trained on
    # Random zoom before the crop, uniform between the two, or in the logarithm; below 1 shows more, smaller.
    'data.scale': Field((0.5, 2.0), check=validation.positive_range),
    'data.log_scale': Field(False),
    # Class-uniform sampling: with this probability a class is drawn, evenly, then an image and the centre of the crop
    # from the places of that class; else all images take turns, and a crop lies anywhere.
    'data.class_uniform': Field(0.0, at_least=0, at_most=1),
    # A crop in which one class has more than this share of the pixels that count is drawn again, up to ten times.
    'data.largest_share': Field(1.0, at_least=0.05, at_most=1),
    'data.flip': Field(0.5, at_least=0, at_most=1),  # probability of a left-right flip
    'data.brightness': Field(0.125, at_least=0),  # added: up to this share of full scale either way
    'data.contrast': Field(0.25, at_least=0, at_most=1),  # contrast and saturation are multiplied by 1 - x to 1 + x
    'data.saturation': Field(0.25, at_least=0, at_most=1),
    'data.gamma': Field(0.0, at_least=0, at_most=2),  # of the logarithm of the exponent of brightness, either way
    'data.hue': Field(0.0, at_least=0, at_most=0.5),  # share of the colour circle that colours turn either way
    # Keep the decoded (and resized) training images: 'memory', for small ones; 'disk', a file in $TMPDIR (a local disk)
    # that goes with the process, for those that take longer to decode than to read: 4 bytes per pixel, 25 GB for
    # Cityscapes. Augmentation comes after it.
    'data.cache': Field('none', choices=('none', 'memory', 'disk')),
    #
    # Model
    'model.width': Field(64, at_least=1),  # channels of the first level; each level down has twice as many
    'model.depth': Field(5, at_least=3, at_most=8),  # levels; the image is halved depth - 1 times
    'model.max_width': Field(0, at_least=0),  # channels that no level has more of; 0: no limit
    # How many times smaller than the image the first level is. 2 quarters the cost of a step and doubles the field of
    # view; strided convolutions lead there, and the logits are interpolated to full size.
    'model.stem': Field(1, check=validation.stem),
    # At the bottom: 'dilated' convolutions widen the field of view by 12 pixels of that level, or 'none'.
    'model.context': Field('none', choices=('none', 'dilated')),
    # How a level's encoder output joins its decoder: 'concat' (U-Net) or 'add' (FCN; less memory).
    'model.skip': Field('concat', choices=('concat', 'add')),
    # 'same': output as large as the input; 'valid': the original unpadded U-Net (572 -> 388).
    'model.padding': Field('same', choices=('same', 'valid')),
    # Doubling in the decoder: 'transpose' (convolution) or 'resize' (bilinear, 1x1 convolution).
    'model.up': Field('transpose', choices=('transpose', 'resize')),
    'model.residual': Field(False),  # add the input of a level to what its two convolutions make of it
    # Probability of leaving out a channel of the lowest level in training.
    'model.dropout': Field(0.0, at_least=0, at_most=0.95),
    # 'batch' (over the global batch), 'group' (each image by itself) or 'none'.
    'model.norm': Field('batch', choices=('batch', 'group', 'none')),
    # Batch statistics are taken over the 'global_batch', so that N devices train as one, or over each 'device' by
    # itself: no sums over devices but those of the gradients, and what is learnt depends on their number.
    'model.norm_over': Field('global_batch', choices=('global_batch', 'device')),
    # Of the running statistics that evaluation uses; lower it for runs below 1000 steps.
    'model.norm_momentum': Field(0.99, at_least=0, at_most=1),
    #
    # Loss: the sum of the first four, each times its weight; unet/training/losses.py has the formulas
    'loss.cross_entropy': Field(1.0, at_least=0),
    'loss.focal': Field(0.0, at_least=0),
    'loss.ohem': Field(0.0, at_least=0),  # online hard example mining
    'loss.dice': Field(0.0, at_least=0),
    # The same losses, times this, of a second head on the decoder's second level (deep supervision); 0: no such head.
    'loss.auxiliary': Field(0.0, at_least=0),
    'loss.class_weights': Field((), check=validation.weights),  # of the cross entropy, one per class; (): all 1
    'loss.balanced': Field(False),  # class weights from the training pixels of each class instead
    'loss.balanced_power': Field(1.0, at_least=0, at_most=1),  # of these weights; 0.5, their square root, is milder
    # Logit adjustment: weights change what is learnt and not what is predicted. This times the logarithm of a class's
    # weight is added to its logit in the losses alone; with 0 predictions lean towards classes that weigh much.
    'loss.logit_adjustment': Field(0.0, at_least=0, at_most=2),
    'loss.label_smoothing': Field(0.0, at_least=0, at_most=1),  # share of the probability spread over all classes
    'loss.focal_gamma': Field(2.0, at_least=0),
    # Pixels whose true class has less probability than this are hard ...
    'loss.ohem_threshold': Field(0.7, at_least=0.01, at_most=1),
    # ... and at least this share of each image's valid pixels.
    'loss.ohem_min_fraction': Field(0.1, at_least=0, at_most=1),
    #
    # Optimizer
    'optimizer.name': Field('adam', choices=('adam', 'adamw', 'sgd')),  # 'sgd' has momentum
    'optimizer.learning_rate': Field(1e-3, at_least=0),  # peak
    # With another global batch the learning rate is multiplied by ('linear') or by the square root of ('sqrt')
    # global_batch / reference_batch; 'none': taken as it is.
    'optimizer.batch_scaling': Field('none', choices=('none', 'sqrt', 'linear')),
    'optimizer.reference_batch': Field(16, at_least=1),
    # After the warm-up; 'polynomial' (power 0.9) and 'cosine' fall to zero.
    'optimizer.schedule': Field('constant', choices=('constant', 'polynomial', 'cosine')),
    'optimizer.warmup_steps': Field(0, at_least=0),  # linear from zero
    'optimizer.momentum': Field(0.9, at_least=0, at_most=1),  # of 'sgd'
    # Decay per step of the means of the gradient and of its square, of 'adam' and 'adamw'; 1 would divide by zero.
    'optimizer.beta1': Field(0.9, at_least=0, below=1),
    'optimizer.beta2': Field(0.999, at_least=0, below=1),
    # Added to the square root that 'adam' and 'adamw' divide by; larger ones calm weights whose gradients are tiny.
    'optimizer.epsilon': Field(1e-7, at_least=1e-15),
    # Of the kernels, never of biases or normalisation; decoupled under 'adamw'.
    'optimizer.weight_decay': Field(0.0, at_least=0),
    # Decay per step of a running mean of the weights, used wherever the model is; 0: none.
    'optimizer.ema': Field(0.0, at_least=0, at_most=1),
    # Largest norm of the whole gradient, after it is summed over devices; 0: no limit.
    'optimizer.clip_norm': Field(0.0, at_least=0),
    #
    # What happens every so many steps
    'eval.every_steps': Field(2000, at_least=1),  # and after the last step
    'eval.batch': Field(1, at_least=1),  # images per device, all of one size
    # Size the model sees; its output is resized back and scored at the original size. (0, 0): the original size.
    'eval.resize': Field((0, 0), check=validation.size_or_zeros),
    'eval.best_metric': Field(
        'eval/miou', choices=('eval/miou', 'eval/miou_present', 'eval/miou_all_ids', 'eval/accuracy')
    ),
    'eval.pictures': Field(4, at_least=0),  # validation images drawn at each evaluation
    'checkpoint.every_steps': Field(1000, at_least=1),  # and after the last step, and when asked to stop
    'checkpoint.keep': Field(2, at_least=1),  # latest checkpoints kept, beside the best
    'log.every_steps': Field(50, at_least=1),
    # Experiment trackers that get the metrics too: 'mlflow', 'wandb', of the extras of the same names. Their own
    # environment variables (MLFLOW_TRACKING_URI, WANDB_MODE, ...) say where to.
    'log.trackers': Field((), choices=('mlflow', 'wandb')),
    # A profiler trace of the steps after the first number up to the second, for TensorBoard.
    'profile.steps': Field((0, 0), check=validation.steps),
    #
    # How it is computed; fields here change nothing that is learnt, but for microbatches with model.norm='batch'
    'runtime.virtual_devices': Field(0, at_least=0),  # split the CPU; 0: all GPUs, or the CPU where there is none
    'runtime.deterministic': Field(False),  # bit-identical reruns, at some cost in speed on GPUs
    # GPUs may round what float32 convolutions and products take to 10 bits (TF32): several times as fast.
    'runtime.tf32': Field(True),
    # XLA. 'auto': on GPUs for predictions and for what a step computes between the sums over devices, on CPUs for what
    # it computes between convolutions. 'on': on CPUs for these too, on GPUs for the sums, once unet.preflight
    # --selfcheck has tried that.
    'runtime.jit_compile': Field('auto', choices=('auto', 'on', 'off')),
    # Activation recomputation: compute each level's activations again in the backward pass instead of keeping them:
    # half the memory, a third more time, the same results.
    'runtime.recompute': Field(False),
    # Gradient accumulation: a device's share of the batch is computed in this many microbatches, one after the other,
    # with one all-reduce and one update: less memory, the same gradient. Batch statistics are then taken over a
    # microbatch (on all devices). 0: the smallest number that fits the memory is found before the first step.
    'runtime.microbatches': Field(1, at_least=0),
    # Steps per call into TensorFlow; a request to stop is answered between calls. 0: on GPUs as many as take a quarter
    # of grace_seconds, at most 10; 1 on CPUs.
    'runtime.steps_per_call': Field(0, at_least=0),
    # A request to stop is answered within this time, or the run ends without the step under way. Keep it below what the
    # cluster allows: 30 s by default in Slurm (KillWait) and Kubernetes.
    'runtime.grace_seconds': Field(25.0, at_least=1),
    # A run that completes no step for so long ends itself; compilation counts.
    'runtime.stall_seconds': Field(1800.0, at_least=1),
    # How long workers wait for each other at the start, and for a sign of life.
    'runtime.peer_seconds': Field(120.0, at_least=1),
}


def get_config() -> ConfigDict:
    """Returns a new config in which every field has its default."""
    return validation.nested({name: field.default for name, field in FIELDS.items()})


def validate(config: ConfigDict) -> list[str]:
    """Says what cannot work about a config, see `validation.validate`."""
    return validation.validate(config, FIELDS)
