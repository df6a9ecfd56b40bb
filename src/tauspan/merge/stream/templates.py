"""Chat templates that a recipe can ask for by name, and the commonest one among models."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tauspan import store
from tauspan.core.errors import RecipeError, nearest

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
    """Make a template that of the tokenizer in a folder, in place of any other."""
    for name in ("chat_template.json", "tokenizer_config.json"):
        file = target / name
        content = store.read_json(file) if file.is_file() else {}
        if isinstance(content, Mapping) and "chat_template" in content:
            store.write_json(file, {key: value for key, value in content.items() if key != "chat_template"})
    for file in (target / "additional_chat_templates").glob("*.jinja"):
        file.unlink()
    store.write_text(target / "chat_template.jinja", text)
