"""The files beside merged weights, as their loaders expect them: configuration, tokenizer, chat template."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.core.errors import RecipeError, listed, nearest
from tauspan.editing.model.saved import EDITED, REFERENCE, Reference
from tauspan.merge.lora.adapter_config import CONFIG as ADAPTER
from tauspan.merge.sources.adapted import SumSource, with_settings
from tauspan.merge.sources.source import config_of, model_folder
from tauspan.merge.stream.depths import with_layers
from tauspan.merge.stream.opened import Opened, leaves
from tauspan.merge.stream.words import with_rows, with_tokens
from tauspan.models import folders
from tauspan.models.home import with_dtype

NAMED: Mapping[str, str] = {
    "chatml": "{% for turn in messages %}"
    "{{ '<|im_start|>' ~ turn['role'] ~ '\n' ~ turn['content'] ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for turn in messages %}"
    "{{ '<|start_header_id|>' ~ turn['role'] ~ '<|end_header_id|>\n\n' ~ turn['content'] | trim ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "mistral": "{% set start = 1 if messages[0]['role'] == 'system' else 0 %}"
    "{{ bos_token }}{% for turn in messages[start:] %}"
    "{% if (loop.index0 % 2 == 0) != (turn['role'] == 'user') or turn['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('after the system message, user and assistant take turns') }}{% endif %}"
    "{% if turn['role'] == 'assistant' %}{{ ' ' ~ turn['content'] ~ eos_token }}"
    "{% elif loop.first and start %}{{ ' [INST] ' ~ messages[0]['content'] ~ '\n\n' ~ turn['content'] ~ ' [/INST]' }}"
    "{% else %}{{ ' [INST] ' ~ turn['content'] ~ ' [/INST]' }}{% endif %}{% endfor %}",
    "alpaca": "{% for turn in messages %}"
    "{% if turn['role'] == 'system' %}{{ turn['content'] | trim ~ '\n\n' }}"
    "{% elif turn['role'] == 'user' %}{{ '### Instruction:\n' ~ turn['content'] | trim ~ '\n\n' }}"
    "{% elif turn['role'] == 'user_context' %}{{ '### Input:\n' ~ turn['content'] | trim ~ '\n\n' }}"
    "{% elif turn['role'] == 'assistant' %}{{ '### Response:\n' ~ turn['content'] | trim ~ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
    "exaone": "{% for turn in messages %}"
    "{% if loop.first and turn['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
    "{{ '[|' ~ turn['role'] ~ '|]' ~ turn['content'] ~ ('\n' if turn['role'] == 'user' else '[|endofturn|]\n') }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
}
"""By name; written after what the models that made these forms known expect."""

_AUTO = "auto"


def template(asked: str, folders: Iterable[Path], place: str) -> str | None:
    """The template that a recipe asks for; None where it asks for the commonest and no model has one.

    Args:
        asked: a name of `NAMED`, `auto`, or the template itself.
        folders: of the models, whose templates `auto` counts; of equally common ones the first is taken.
        place: begins an error's message.

    Raises:
        RecipeError: neither a name nor a template.
    """
    if asked == _AUTO:
        found = [text for folder in folders if (text := template_of(folder)) is not None]
        return Counter(found).most_common(1)[0][0] if found else None
    if asked in NAMED:
        return NAMED[asked]
    if "{" not in asked:
        raise RecipeError(
            f"{place}chat_template: {asked!r} is no template, which would have {{ ... }}, and no name of one. "
            f"{nearest(asked, (*NAMED, _AUTO))}"
        )
    return asked


def template_of(folder: Path) -> str | None:
    """The chat template of the tokenizer in a folder, without space around it; None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip() or None
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = store.read_json(folder / name) if (folder / name).is_file() else {}
        found = content.get("chat_template") if isinstance(content, Mapping) else None
        if isinstance(found, list):  # several by name
            found = next(
                (
                    one.get("template")
                    for one in found
                    if isinstance(one, Mapping) and one.get("name") == "default"
                ),
                None,
            )
        if isinstance(found, str) and found.strip():
            return found.strip()
    return None


def put(target: Path, text: str) -> None:
    """Set the chat template of the tokenizer in a folder, in place of any other."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        file = target / name
        content = store.read_json(file) if file.is_file() else {}
        if isinstance(content, Mapping) and "chat_template" in content:
            store.write_json(file, {key: value for key, value in content.items() if key != "chat_template"})
    for file in (target / "additional_chat_templates").glob("*.jinja"):
        file.unlink()
    store.write_text(target / "chat_template.jinja", text)


_LEFT = "quantization_config"


def finish(target: Path, opened: Opened, dtypes: Iterable[torch.dtype]) -> None:
    """Write what a model's directory has beside its weights; nothing where the inputs are bare files.

    Configuration, generation configuration and preprocessing come from the base, else from the first model; the
    tokenizer and its chat template from `tokenizer_source`. Only files that a loader reads are copied, never code,
    pickles or links that lead out of the folder.

    Args:
        target: the output's folder.
        opened: the merge's recipe with its sources.
        dtypes: of the output's floating-point tensors; where they are one, `config.json` says so.

    Raises:
        ModelError: slices of a model whose configuration has no number of layers.
    """
    folder = opened.folder
    if folder is None:
        return
    words = opened.words.folder
    own = folders.tokenizer_files(folder)
    other = words is not None and words.resolve() != folder.resolve()
    folders.copied(folder, target, [file for file in folders.beside(folder) if not (other and file in own)])
    if other and words is not None:
        folders.copied(words, target, folders.tokenizer_files(words))
    if opened.words.extra and words is not None and opened.words.alignment is not None:
        with_tokens(words, target, opened.words.extra, opened.words.alignment.tokens)
    text = _template(opened)
    if text is not None:
        put(target, text)
    config, _ = _config(opened, dtypes)
    if config:
        inner = target / folders.main_folder(folder).relative_to(folder)
        inner.mkdir(parents=True, exist_ok=True)
        store.write_json(inner / folders.CONFIG, config)
    if config and opened.recipe.base_model is not None and not opened.recipe.slices:
        _refer(target, opened)


def _template(opened: Opened) -> str | None:
    """The chat template that the recipe asks for; None for the tokenizer's own."""
    if opened.recipe.chat_template is None or opened.words.folder is None:
        return None
    places = (model_folder(leaf.path) for source in opened.points for leaf in leaves(source))
    known = list(dict.fromkeys(place for place in places if place is not None))
    return template(opened.recipe.chat_template, known, opened.recipe.place("chat_template"))


def _config(opened: Opened, dtypes: Iterable[torch.dtype]) -> tuple[dict[str, Any], list[str]]:
    """The result's configuration, empty where there is none, and notes about what it says of layers."""
    config = {key: value for key, value in config_of(opened.home.path).items() if key != _LEFT}
    if isinstance(opened.home, SumSource):
        config = with_settings(config, opened.home.settings)
    if not config:
        return {}, []
    kinds = set(dtypes)
    if len(kinds) == 1 and {"model_type", "dtype", "torch_dtype"} & set(config):
        config = with_dtype(config, kinds.pop())
    said: list[str] = []
    if opened.stacked is not None:
        config, said = with_layers(config, opened.stacked, opened.home.path)
    if opened.words.alignment is not None:
        config = with_rows(config, opened.words.alignment.rows)
    return config, said


def _refer(target: Path, opened: Opened) -> None:
    """Write which model's frozen heads the result uses: those of the base, as for any edited model."""
    assert opened.recipe.base_model is not None  # noqa: S101 - the caller has looked
    folder = None if opened.base is None else model_folder(opened.base.path)
    if folder is None:
        return
    if (folder / REFERENCE).is_file():  # the base is an edited model itself
        folders.copied(folder, target, [Path(REFERENCE)])
        return
    known = (model.identity["base"] for model in opened.models if "base" in model.identity)
    path = str(folder.resolve()) if Path(opened.recipe.base_model).exists() else None
    edit = f"merged by {opened.method.name}"
    Reference(EDITED, opened.recipe.base_model, path, next(known, ""), edit=edit).write(target)


def parts(opened: Opened) -> tuple[str, ...]:
    """Folders of the result that have weights of their own."""
    folder = opened.home.path
    if not folder.is_dir():
        return ()
    main = folders.main_folder(folder)
    return (*([] if main == folder else [str(main.relative_to(folder))]), *folders.parts(folder))


def notes(opened: Opened) -> list[str]:
    """Notes about the folders of a merge, before it begins: what is not read, not copied or left out.

    Raises:
        RecipeError: a chat template that is none.
        ModelError: slices of a model whose configuration has no number of layers.
    """
    found = []
    for source in [leaf for one in opened.points for leaf in leaves(one)]:
        if source.path.is_dir():
            read = dict.fromkeys(stored.file for stored in source.tensors.values())
            found.append(folders.unread(source.path, dict.fromkeys(read)))
            if source.kind == "point" and (source.path / ADAPTER).is_file():
                found.append(
                    f"{source.path} holds a model and an adapter: the model is read. To read the adapter, name "
                    f"{source.path / ADAPTER}."
                )
    folder = opened.folder
    if folder is not None and opened.recipe.output == "model":
        found += _of_home(folder, opened)
        if opened.recipe.chat_template is not None and _template(opened) is None:
            found.append(
                f"chat_template: {opened.recipe.chat_template}: no model has one, or no tokenizer: none is written."
            )
        found += _config(opened, [])[1]
    return [one for one in found if one is not None]


def _of_home(folder: Path, opened: Opened) -> list[str]:
    """Notes about the folder that the result's files come from."""
    said = []
    words = opened.words.folder
    every = {
        (place, file) for place in (folder, words) if place is not None for file in folders.beside(place)
    }
    links = sorted(str(place / file) for place, file in every if not folders.inside(place, place / file))
    if links:
        said.append(
            f"{listed(links)} {'is a link' if len(links) == 1 else 'are links'} to a place outside the folder, and not "
            "copied: put a copy of the file there."
        )
    config = config_of(opened.home.path)
    if config.get("auto_map"):
        said.append(
            f"{folder / folders.CONFIG} names Python code of its own (auto_map), which is not copied: whoever trusts it "
            "copies it by hand."
        )
    if config.get(_LEFT):
        said.append(
            f"{folder / folders.CONFIG} has a `{_LEFT}`, and the weights are real numbers: it is left over from "
            "training, and the result has none."
        )
    inner = folders.parts(folder)
    if inner:
        said.append(
            f"the weights of {listed(inner)}, which {folders.MODULES} lists beside the model, are merged like the "
            "model's."
        )
    return said
