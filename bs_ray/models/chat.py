"""A text tower that is a chat model (Qwen3's): a prompt is what a user says to it."""

from __future__ import annotations

from typing import Any

from bs_ray.models.flow import OneTower

_TOKENS = 512  # diffusers' default max_sequence_length


class ChatTower(OneTower):
    """A family whose one text encoder reads prompts as messages."""

    thinking: bool
    """Whether the model's template leaves room for its thoughts."""

    def readers(self) -> list[tuple[Any, int]]:
        tokenizer = self.text[0]
        return [(tokenizer, _TOKENS - len(tokenizer(self._message("")).input_ids))]

    def tokens(self, prompts: list[str]) -> Any:
        """int64 `input_ids` and `attention_mask`, each [B, 512], on the base's device."""
        return self.text[0](
            [self._message(prompt) for prompt in prompts],
            padding="max_length",
            max_length=_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)

    def _message(self, prompt: str) -> str:
        message: str = self.text[0].apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return message
