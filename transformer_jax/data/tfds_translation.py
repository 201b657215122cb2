"""The translation datasets of TensorFlow Datasets by their TFDS names, such as `wmt14_translate/de-en`."""

import difflib
import html
import importlib
import pkgutil
import re

import tensorflow_datasets as tfds
import tensorflow_datasets.translate
from tensorflow_datasets.core import registered

from transformer_jax.data.cache import cache_directory
from transformer_jax.errors import UserError

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")


def open_tfds(name: str, source_language: str, target_language: str, path: str) -> tfds.core.DatasetBuilder:
    """The TFDS builder called `name`, prepared or not, whose examples hold the two languages.

    Args:
      name: "dataset/config", where the config's own direction does not matter.
      source_language, target_language: two of the dataset's languages.
      path: TFDS data_dir to read from and prepare in; "" is the project's cache.

    Raises:
      UserError: TFDS knows no such dataset or config, or the dataset lacks a language.
    """
    # TFDS finds these builders only once their modules are imported.
    for module in pkgutil.iter_modules(tensorflow_datasets.translate.__path__, "tensorflow_datasets.translate."):
        if not module.name.endswith("_test"):
            importlib.import_module(module.name)
    data_dir = path or str(cache_directory() / "datasets")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except registered.DatasetNotFoundError as error:
        known = ["phrases", "multi30k", "parallel_text", *registered.list_imported_builders()]
        near = difflib.get_close_matches(name.split("/")[0], known, n=3) or known[:3]
        raise UserError(
            f"dataset.name is {name!r}, neither phrases, multi30k, parallel_text nor a TFDS dataset. "
            f"Did you mean {' or '.join(near)}?"
        ) from error
    except ValueError as error:
        dataset = name.split("/")[0]
        configs = ", ".join(f"{dataset}/{config}" for config in tfds.builder_cls(dataset).builder_configs)
        raise UserError(f"dataset.name is {name!r}, which TFDS cannot build. It has {configs}") from error
    languages = getattr(builder.info.features, "languages", None)
    if not isinstance(builder.info.features, tfds.features.Translation) or not languages:
        raise UserError(f"dataset.name is {name!r}, whose examples are not pairs of sentences in two languages")
    for language in (source_language, target_language):
        if language not in languages:
            raise UserError(f"{name} has no language {language!r}: it has {', '.join(languages)}")
    return builder


def check_readable(builder: tfds.core.DatasetBuilder) -> None:
    """Raises UserError if the prepared files are not ArrayRecord and so cannot be read without TensorFlow."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{builder.data_dir} is stored as {', '.join(sorted(formats))}, only array_record can be read. "
            f"Convert it with: tfds convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record"
        )


def unescape(text: str) -> str:
    """`text` with SGML and HTML entities replaced by their characters, on one line.

    Only whole entities count: html.unescape by itself would also turn the "&copy" of "?a=1&copy=2" into ©.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return text.replace("\n", " ").replace("\r", " ")
