"""Parsing flags that hold a config."""

from absl import app

from concertormer_jax import errors


def parse(argv):
    """Parse the flags; a key that the config does not have is one sentence, not ml_collections' trace."""
    with errors.reported():
        try:
            return app.parse_flags_with_usage(argv)
        except AttributeError as error:
            key = str(error).strip("\"'")
            flag = next((argument for argument in argv if argument.partition("=")[0].endswith(f".{key}")), key)
            raise errors.UserError(f"{flag}: the config has no such key; see configs/common.py") from error
