"""What the model is asked: the instructions by task, the default form of a conversation, and the type of a prompt."""

# What the model is asked to do, by task.
INSTRUCTIONS = {"report": "Write the report of this chest X-ray."}
# Works with any tokenizer; models with a chat format of their own bring their own template.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'Assistant: ' if message['role'] == 'assistant' else 'User: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ image_token }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
# Put inside a token that must not be one: invisible and of no width.
WORD_JOINER = "\u2060"


class RenderedPrompt(str):
    """A prompt that the processor's `apply_chat_template` made: its placeholders and special tokens are structure."""


__all__ = ["DEFAULT_CHAT_TEMPLATE", "INSTRUCTIONS", "WORD_JOINER", "RenderedPrompt"]
