"""A program as a TensorFlow Lite file, which LiteRT runs on phones, by TensorFlow's own converter."""

import contextlib
import os
import sys
import warnings
from collections.abc import Generator

import jax
import numpy as np

from concertormer_jax.exporting.program import INPUT, OUTPUT, Program
from concertormer_jax.runtime.errors import UserError

TOLERANCE = 1e-4


def tflite(program: Program) -> tuple[bytes, dict]:
    """Return the file's content, which needs built-in operations alone, and its manifest, for one picture.

    The file is run once, as the converter takes some programs for others. Raises UserError if it cannot convert this
    one, and if the file restores a random picture otherwise than JAX does.
    """
    import tensorflow as tf  # slow, and not needed for other formats
    from jax.experimental import jax2tf

    shape, restore = program.shape(1), program.function()
    signature = [tf.TensorSpec(shape.shape, tf.float32, name=INPUT)]
    converted = jax2tf.convert(restore, with_gradient=False)
    module = tf.Module()
    module.run = run = tf.function(lambda image: {OUTPUT: converted(image)}, input_signature=signature, autograph=False)
    picture = np.random.default_rng(0).random(shape.shape, np.float32)
    with _quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()], module)
        if program.half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = converter.convert()
        except Exception as error:  # of several kinds, with a place in the code and the reason in the first line
            reason = str(error).partition("\n")[0].rpartition("error: ")[2]
            raise UserError(
                f"TensorFlow cannot write this network as a .tflite file ({reason}); export .onnx"
            ) from error
        found = tf.lite.Interpreter(model_content=content).get_signature_runner()(**{INPUT: picture})[OUTPUT]
    difference = np.abs(found - np.asarray(jax.jit(restore)(picture))).max()
    if not difference <= TOLERANCE:
        raise UserError(
            f"the .tflite file of this network restores other pictures, by up to {difference:.2g}, which is a fault of "
            "TensorFlow's converter; export .onnx"
        )
    return content, program.manifest(1, format="TensorFlow Lite (LiteRT)", tensorflow=tf.__version__)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep from the terminal what TensorFlow's C++ prints; its errors are raised too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the interpreter is deprecated there, for the same one in a package apart
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
