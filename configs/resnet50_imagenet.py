"""ResNet50 on ImageNet at 224 pixels, with the DCT offset and 1 % of its weights, in 90 epochs.

    python train.py --config configs/resnet50_imagenet.py --workdir runs/resnet50_imagenet \\
        --config.data.dir=/data/imagenet

The folder holds train/<class>/*.JPEG and val/<class>/*.JPEG; 1 % of the training images validate, val is the test set.
Other forms of the same images: ``--config.data.name=tfds_folder``, ``parquet_folder``, ``array_record_folder``,
``webdataset_folder``. Random resized crops and flips, SGD with Nesterov's momentum, 0.1 for each 256 images of a batch
(Goyal et al. 2017), five epochs of warm-up and half a cosine, weight decay on kernels only, label smoothing.

Not run on ImageNet: what it reaches is not known.
"""

from dctps_jax import defaults


def get_config():
    config = defaults.get_config()
    config.num_epochs = 90
    config.batch_size = 1024
    config.eval_batch_size = 1024
    config.model.name = "resnet50"
    config.model.stem = "imagenet"
    config.model.dtype = "bfloat16"
    config.data.name = "image_folder"
    config.data.image_size = 224
    config.data.fit = "centre"
    config.data.crop = "random_resized"
    config.data.train_fraction = 0.99
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay = "kernels"
    config.optimizer.label_smoothing = 0.1
    return config
