"""What the model is asked: the instructions by task, the default form of a conversation, and the type of a prompt."""

# What the model is asked to do, by task; the words in braces are filled in by the processor's `task_prompt`. Short on
# purpose: the prompt shares the language model's context with the film and the answer.
INSTRUCTIONS = {
    # film -> report
    "report": "Write the report of this chest X-ray.",
    # film -> report in the order in which things were looked at
    "reading": "Write the report of this chest X-ray in the order of the reading.",
    # film -> report with the boxes of what each sentence asserts behind it
    "grounded": "Write the report of this chest X-ray with boxes.",
    # film and findings with place, severity and certainty -> report
    "structured": "Write the report of this chest X-ray. Findings: {findings}",
    # film and question -> answer
    "ask": "Question: {question}",
    # film and phrase -> boxes, or a sentence that says that there is nothing to box
    "ground": "Where on the film: {phrase}",
    # film and box -> sentence
    "describe": "What is in the box {box}?",
    # film and the gaze of one sentence -> clue boxes, observation box and the sentence
    "observe": "What was looked at, and what was seen?",
    # film and gaze whose parts were shuffled -> their order
    "order": "In which order were these {count} looked at?",
}
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
