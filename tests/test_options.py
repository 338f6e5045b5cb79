"""Options are defined once: keywords, flags of the command and documentation agree."""

from __future__ import annotations

import math

import click
import pytest

import codec
from cli.main import main
from cli.manual import option_table
from codec.codec import Codec
from codec.errors import UsageError
from codec.options import CodecOptions, DecodeOptions, EncodeOptions, definitions, with_target

COMMANDS = {"encode": (EncodeOptions, CodecOptions), "decode": (DecodeOptions, CodecOptions)}


@pytest.mark.parametrize(("name", "classes"), COMMANDS.items())
def test_the_command_has_a_flag_for_each_keyword(name, classes):
    flags = {option.name: option for option in main.commands[name].params if isinstance(option, click.Option)}
    for options in classes:
        for keyword, (_, definition) in definitions(options).items():
            if not definition.flag or (name, keyword) == ("decode", "lpips_weights"):
                continue
            flag = flags[keyword]
            assert f"--{keyword.replace('_', '-')}" in flag.opts
            assert set(definition.flags) <= set(flag.opts)
            if isinstance(flag.type, click.FloatRange | click.IntRange):
                assert (flag.type.min, flag.type.max) == (definition.minimum, definition.maximum)


def test_codec_takes_its_options():
    values = {"model": "standard", "device": "cpu", "runtime": "auto", "tile": 512, "max_pixels": 99, "lpips_weights": "x.npz"}
    assert values.keys() == definitions(CodecOptions).keys()
    made = Codec(**values)
    assert (made.device, made.tile, made.max_pixels, made.lpips_weights.name) == ("cpu", 512, 99, "x.npz")


@pytest.mark.parametrize(
    "options",
    [
        {"quality": -1},
        {"quality": 101},
        {"quality": math.nan},
        {"tokens": 0.5},
        {"target_size": 0},
        {"target_bpp": 0},
        {"target_bpp": math.inf},
        {"target_psnr": math.inf},
        {"target_psnr": -1},
        {"effort": 2},
        {"effort": 10},
        {"alpha_quality": 101},
        {"quality": 50, "tokens": 3},
        {"target_psnr": 30, "target_lpips": 0.2},
        {"strip": True, "keep_exif": True},
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(options, photo):
    with pytest.raises(UsageError) as caught:
        codec.encode(photo, **options)
    assert caught.value.usage


@pytest.mark.parametrize("function", [codec.encode, codec.decode])
def test_unknown_keywords_are_refused(function, photo):
    with pytest.raises(TypeError, match="qualty"):
        function(photo, qualty=3)


def test_the_default_quality_is_a_target():
    assert with_target({}) == {"quality": 50}
    assert with_target({"tokens": 9, "quality": None})["quality"] is None


def test_the_table_has_a_row_for_each_keyword():
    rows = option_table(EncodeOptions)[2:]
    assert [row.split("`")[1] for row in rows] == list(definitions(EncodeOptions))
    assert "`-q`, `--quality`" in rows[0]
