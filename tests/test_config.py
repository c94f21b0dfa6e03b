"""The check of a config: every mistake is one sentence that names the field, what was found, and what is allowed."""

import contextlib
import math

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import lenet_digits
from dctps_jax import defaults
from dctps_jax.config import check_all_is_read, check_config, resolve, unknown_field
from dctps_jax.defaults import FIELDS
from dctps_jax.errors import UserError
from dctps_jax.ops import cost_model

CHOICES = [(name, field.choices) for name, field in FIELDS.items() if field.choices and not field.optional]
RANGES = [
    (name, field.allowed)
    for name, field in FIELDS.items()
    if field.allowed and not (field.choices or field.default == ())
]


def config_with(**fields):
    """The quick-start config with fields set by dotted path, with `__` for the dot."""
    config = lenet_digits.get_config()
    for field, value in fields.items():
        set_field(config, field.replace("__", "."), value)
    return config


def set_field(config, field, value):
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})


def message_of(config):
    with pytest.raises(UserError) as caught:
        check_config(config)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_defaults_pass():
    check_config(defaults.get_config())
    check_config(lenet_digits.get_config())


@pytest.mark.parametrize("value", ["none", "None", "", "NONE", None])
def test_no_offset_has_one_spelling(value):
    config = resolve(config_with(model__offset=value))
    check_config(config)
    assert config.model.offset is None


@pytest.mark.parametrize("offset", ["dct", "none", "fourier"])
def test_the_check_changes_nothing(offset):
    config = config_with(model__offset=offset)
    with contextlib.suppress(UserError):
        check_config(config)
    assert config.model.offset == offset and config == config_with(model__offset=offset)


BAD_NUMBERS = [
    ("distributed.coordinator", "host"), ("distributed.coordinator", "host:0"), ("distributed.coordinator", ":1234"),
    ("distributed.num_processes", -1), ("distributed.process_id", -2),
    ("distributed.shards", 0),
    ("seed", -1), ("seed", 2**32), ("num_seeds", 0), ("batch_size", 0), ("batch_size", -128), ("eval_batch_size", 0),
    ("num_epochs", 0), ("steps_per_dispatch", -1), ("execution.min_loop", 1), ("execution.min_loop", -1),
    ("log_every_steps", 0), ("checkpoint_every_steps", -1), ("model.width", 0), ("data.train_fraction", 0.0),
    ("data.train_fraction", 1.0), ("data.image_size", -1), ("data.max_pixels", 0), ("data.channels", 2),
    ("data.processes", -1),
    ("pruning.density", 0.0), ("pruning.pattern", "4:2"), ("pruning.rewind_epoch", -2),
    ("pruning.density", 1.01), ("pruning.density", math.nan), ("pruning.num_steps", -1), ("pruning.num_batches", 0),
    ("sparse_training.update_every", 0), ("sparse_training.stop_fraction", 1.5),
    ("sparse_training.drop_fraction", -0.1), ("sparse_training.begin_fraction", 1.1),
    ("sparse_training.initial_density", 0.0), ("optimizer.learning_rate", 0.0), ("optimizer.learning_rate", -1.0),
    ("optimizer.learning_rate", math.inf), ("optimizer.learning_rate", math.nan), ("optimizer.momentum", 1.0),
    ("optimizer.weight_decay", -1e-4), ("optimizer.weight_decay", math.inf), ("optimizer.decay_rate", 0.0),
    ("optimizer.decay_rate", 1.1), ("optimizer.clip_norm", -1.0), ("optimizer.accumulate_steps", 0),
    ("optimizer.label_smoothing", 1.0), ("optimizer.ema_decay", 1.0), ("optimizer.warmup_epochs", -1.0),
    ("optimizer.kernel_rate", -1.0), ("optimizer.kernel_rate", math.inf), ("model.alpha_init", math.nan),
    ("optimizer.patience", 0), ("data.cutout", -1), ("data.random_erasing", 1.5), ("data.mixup", -0.1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_NUMBERS)
def test_numbers_out_of_range(field, value):
    config = config_with()
    set_field(config, field, value)
    assert message_of(config).startswith(f"config.{field} is {value!r}; it must be ")


def test_every_range_is_tested_above():
    assert {field for field, *_ in RANGES} == {field for field, _ in BAD_NUMBERS}


@pytest.mark.parametrize("field", [field for field, _ in CHOICES])
def test_unknown_names_list_what_there_is(field):
    config = config_with()
    set_field(config, field, "nonsense")
    message = message_of(config)
    assert message.startswith(f"config.{field} is 'nonsense'")
    for choice in dict(CHOICES)[field]:
        assert choice in message


def test_close_names_are_suggested():
    assert "did you mean 'resnet50'?" in message_of(config_with(model__name="resnet_50"))
    assert "did you mean 'erk'?" in message_of(config_with(pruning__method="ekr"))
    assert "'dct'" in message_of(config_with(model__offset="dtc"))
    assert "did you mean 'per_weight'?" in message_of(config_with(execution__method="per_weights"))


@pytest.mark.parametrize("pairs", [(("a",),), (("a", "fast"),), ("on_support",), ((1, "on_support"),)])
def test_layer_methods(pairs):
    message = message_of(config_with(execution__layer_methods=pairs))
    assert (
        "config.execution.layer_methods" in message
        and "autodiff, on_support, on_support_rows, per_weight, per_weight_rows, transform, transform_rows" in message
    )


@pytest.mark.parametrize(("old", "name"), cost_model.RENAMED.items())
def test_old_names_of_methods_are_answered_with_the_present_ones(old, name):
    sentence = f"{old!r}; it is now called {name!r}, give this name"
    assert message_of(config_with(execution__method=old)) == f"config.execution.method is {sentence}"
    pairs = (("conv*", "auto"), ("fc*", old))
    message = message_of(config_with(execution__layer_methods=pairs))
    assert message == (
        f"config.execution.layer_methods has ('fc*', {old!r}); {old!r} is now called {name!r}, give this name"
    )
    check_config(config_with(execution__method=name, execution__layer_methods=(("fc*", name),)))


@pytest.mark.parametrize("milestones", [(0, 1), (5, 3), (3, 3), (1.5,), ("a",), (-1,)])
def test_milestones(milestones):
    assert "config.optimizer.milestones is" in message_of(config_with(optimizer__milestones=milestones))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,) * 3, ()),
        ((), (0.5,) * 3),
        ((0.5,) * 2, (0.5,) * 2),
        ((0.5,) * 3, (0.5, 0.5, 0.0)),
        (("a", "b", "c"), (1.0,) * 3),
        ((0.5,) * 3, ("a", "b", "c")),
        ((math.nan,) * 3, (0.5,) * 3),
    ],
)
def test_moments(mean, std):
    message = message_of(config_with(data__mean=mean, data__std=std))
    assert "config.data.mean" in message and "config.data.std" in message


@pytest.mark.parametrize("pairs", [("fc",), (("fc",),), ((0.5, "fc"),), (("fc", "dense"),), (("fc", 0.5, 1),)])
def test_layer_densities(pairs):
    assert "config.pruning.layer_densities" in message_of(config_with(pruning__layer_densities=pairs))


def test_lists_are_as_good_as_tuples():
    check_config(config_with(pruning__layer_densities=(["fc", 0.5],)))
    check_config(config_with(execution__layer_methods=(["fc", "auto"],), optimizer__milestones=[1, 2]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__options": (("b1", "x"),)}, "optimizer 'adam' cannot take the options {'b1': 'x'}"),
        ({"num_epochs": 3, "keep_epochs": (2, 50)}, "config.keep_epochs is (2, 50) and config.num_epochs 3"),
        (
            {
                "data__name": "image_folder",
                "data__crop": "random_resized",
                "data__image_size": 8,
                "data__augment": False,
            },
            "config.data.crop is 'random_resized' and config.data.augment False",
        ),
    ],
)
def test_what_would_have_no_effect_or_fail_later_is_refused(fields, message):
    assert message in message_of(config_with(**fields))


def test_dense_layers():
    assert "config.pruning.dense_layers" in message_of(config_with(pruning__dense_layers=(1,)))


def test_the_alpha_of_fixup_networks_is_their_own():
    message = message_of(config_with(model__name="fixup_resnet20", model__alpha_init=0.5))
    assert "config.model.alpha_init is 0.5, and fixup_resnet20 has its own start" in message
    check_config(config_with(model__name="vgg11", model__alpha_init=0.5))


def test_options_of_other_networks():
    assert "config.model.width" in message_of(config_with(model__width=32))
    assert "config.model.stable" in message_of(config_with(model__stable=True))
    check_config(config_with(model__name="resnet18", model__width=32, model__stable=True))


@pytest.mark.parametrize("field", ["batch_size", "eval_batch_size"])
def test_batch_has_to_be_shared_by_the_devices(field):
    assert jax.device_count() == 8
    message = message_of(config_with(**{field: 66}))
    assert message.startswith(f"config.{field} is 66, which 8 devices cannot share evenly") and "e.g. 64" in message
    assert "e.g. 8" in message_of(config_with(**{field: 1}))


def test_shards_have_to_divide_the_devices():
    message = message_of(config_with(distributed__shards=3))
    assert message == (
        "config.distributed.shards is 3, but there are 8 devices, which must be a multiple of it; choose one of: "
        "1, 2, 4, 8"
    )
    assert "choose one of: 1, 2, 4, 8" in message_of(config_with(distributed__shards=16))
    check_config(config_with(distributed__shards=4))
    check_config(config_with(distributed__shards=3), check_devices=False)


def test_last_seed_is_a_seed_too():
    assert "config.num_seeds" in message_of(config_with(seed=2**32 - 1, num_seeds=2))


@pytest.mark.parametrize("field", ["pruning.densty", "sede", "model.witdh", "extra.field"])
def test_field_that_nothing_reads_is_a_mistake(field):
    config = config_with()
    group, _, name = field.rpartition(".")
    if group == "extra":
        config.extra = {"field": 1}
    else:
        (config[group] if group else config)[name] = 1
    assert field in message_of(config)


def test_messages_name_the_defaults_of_the_package():
    assert unknown_field("nothing.of.the.kind").endswith("docs/configuration.md has them all")
    config = config_with()
    del config.seed
    assert message_of(config).endswith("build it on dctps_jax.defaults.get_config()")


@pytest.mark.parametrize(
    "field", ["seed", "model", "model.name", "pruning.density", "data.mean", "optimizer.milestones"]
)
def test_missing_field_is_named(field):
    config = config_with()
    group, _, name = field.rpartition(".")
    del (config[group] if group else config)[name]
    assert f"config.{field}" in message_of(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", "64"),
        ("pruning.density", None),
        ("optimizer.milestones", 5),
        ("data.mean", 0.5),
        ("batch_size", 6.5),
    ],
)
def test_wrong_type_in_a_config_file_is_named(field, value):
    config = config_with()
    set_field(config, field, value)
    assert f"config.{field}" in message_of(config)


NUMBERS = st.one_of(st.integers(-3, 300), st.integers(), st.floats(), st.sampled_from([0, 1, 4, 0.5, 2**31, 2**63]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([field for field, *_ in RANGES]), NUMBERS)
def test_any_number_passes_or_is_one_sentence(field, value):
    config = config_with()
    set_field(config, field, value)
    try:
        check_config(config)
    except UserError as error:
        assert "\n" not in str(error) and f"config.{field}" in str(error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "config.pruning.pattern is '2:4', which keeps 0.5 of the weights, and config.pruning.density is 0.01"),
        ({"pruning__density": 0.5}, "the weights are allocated by 'epl'; choose 'uniform', or a score"),
        ({"pruning__pattern": "4:4"}, "config.pruning.pattern is '4:4'; it must be 'N:M' with 0 < N < M"),
        (
            {"pruning__density": 0.5, "pruning__method": "uniform", "sparse_training__method": "rigl"},
            "breaks the pattern; choose 'static'",
        ),
    ],
)
def test_patterns_that_contradict_other_fields(fields, message):
    assert message in message_of(config_with(**{"pruning__pattern": "2:4"} | fields))
    check_config(config_with(pruning__pattern="1:3", pruning__density=0.333, pruning__method="uniform"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sparse_training__initial_density": 0.5},
            "initial_density is 0.5, which has no effect while .* or set config.sparse_training.method to gmp",
        ),
        ({"sparse_training__begin_fraction": 0.1}, "begin_fraction is 0.1, .* 'static'; leave it at 0.0"),
        ({"sparse_training__update_every": 7}, "update_every is 7, .* set .*.method to one of: rigl, set, gmp"),
        (
            {"sparse_training__method": "gmp", "sparse_training__drop_fraction": 0.5},
            "drop_fraction is 0.5, .*: rigl, set",
        ),
        ({"sparse_training__method": "rigl", "sparse_training__initial_density": 0.5}, "while .*method is 'rigl'"),
        ({"pruning__num_steps": 5}, "pruning.num_steps is 5, .* config.pruning.method is 'epl'"),
        ({"pruning__scope": "layer"}, "pruning.scope is 'layer'"),
        ({"pruning__loss": "nll_logits", "pruning__method": "erk"}, "pruning.loss is 'nll_logits'"),
        ({"pruning__run": "runs/first"}, "pruning.run is 'runs/first', .* set config.pruning.method to from_run"),
        (
            {"pruning__dense_layers": ("a",), "pruning__method": "from_run", "pruning__run": "x"},
            "pruning.dense_layers is",
        ),
        (
            {"optimizer__schedule": "cosine", "optimizer__milestones": (2, 3)},
            r"milestones is \(2, 3\), .* while config.optimizer.schedule is 'cosine'; .*schedule to milestones",
        ),
        (
            {"optimizer__schedule": "constant", "optimizer__decay_rate": 0.5},
            "decay_rate is 0.5, .* to one of: milestones, plateau",
        ),
        ({"optimizer__patience": 3}, "patience is 3, .* 'milestones'; leave it at 10, or set .* to plateau"),
        ({"optimizer__momentum": 0.5}, "momentum is 0.5, .* 'adam'; .* to one of: sgd, nesterov"),
        (
            {"model__alpha_init": 0.5, "model__offset": None},
            "alpha_init is 0.5, .*model.offset is None; .* one of: dct, hadamard",
        ),
        ({"model__alpha_trainable": False, "model__offset": None}, "alpha_trainable is False"),
        ({"model__init": "orthogonal"}, "model.init is 'orthogonal', .* is 'dct'; .* set config.model.offset to None"),
        (
            {"model__name": "fixup_resnet20", "model__offset": None, "model__init": "orthogonal"},
            "fixup_resnet20 has its own start; leave it at 'kaiming_normal'",
        ),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_refused(fields, message):
    config = config_with(**fields)
    check_config(config)  # a run that has it already goes on
    with pytest.raises(UserError, match=message):
        check_all_is_read(config)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pruning__method": "snip", "pruning__num_steps": 5, "pruning__scope": "layer"},
        {"sparse_training__method": "set", "sparse_training__drop_fraction": 0.5},
        {"sparse_training__method": "gmp", "sparse_training__initial_density": 0.5},
        {"pruning__method": "from_run", "pruning__run": "runs/first", "pruning__density": 0.5},
        {"pruning__method": "from_run", "pruning__run": "x", "pruning__rewind_epoch": 0, "pruning__scope": "layer"},
        {"pruning__dense_layers": []},
        {"optimizer__milestones": (2, 3), "optimizer__decay_rate": 0.5},
        {"optimizer__schedule": "plateau", "optimizer__patience": 3, "optimizer__decay_rate": 0.5},
        {"optimizer__name": "nesterov", "optimizer__momentum": 0.5},
        {"model__offset": "hadamard", "model__alpha_init": 0.5, "model__alpha_trainable": False},
        {"model__offset": None, "model__init": "orthogonal"},
    ],
)
def test_a_setting_that_is_read_passes(fields):
    check_all_is_read(config_with(**fields))
