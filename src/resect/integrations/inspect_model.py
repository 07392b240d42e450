"""The Inspect provider: any Inspect evaluation, put to a model with its weights cut.

    inspect eval TASK --model resect//path/to/model -M mask=harm.mask.safetensors

Inspect's own Hugging Face provider does the batching, the tools and the log-probabilities. What it
does otherwise than a comparison of variants needs is changed here, and each change has a test:
- replies are greedy unless a temperature, top-p or top-k asks for sampling, and the checkpoint's
  own generation settings (penalties, temperatures) do not come in;
- prompts are tokenised without special tokens, because the chat template has placed them already;
- an assistant's turn that ends the messages is continued, so that a prefill is one;
- tokens are counted by the model's own tokenizer, which needs no network;
- a model that lives in memory is cut while it generates and only then, its tokenizer is copied,
  and `close` leaves it alone;
- every output says which mask was in force, and so does the screen when an evaluation begins.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput
from inspect_ai.model._providers.hf import HuggingFaceAPI, message_content_to_string
from inspect_ai.tool import ToolChoice, ToolInfo
from torch import Tensor

from resect.data.encode import check_format
from resect.data.template import bounded_template
from resect.edit.live import removed
from resect.errors import InputError, ResectError
from resect.evaluation.decode import (
    DecodingConfig,
    GenerationSettings,
    decoding_as,
    end_tokens,
    evaluating,
    pad_id,
)
from resect.integrations.cuts import as_mask, check_mask, mask_facts
from resect.model import LoadedModel, context_of, load_model, model_fingerprint
from resect.records import CausalModel, Format, Tokenizer
from resect.weights.mask import Mask

logger = logging.getLogger(__name__)

ARGUMENTS = ("mask", "format", "dtype", "device", "enable_thinking", "hf_model", "hf_tokenizer")


class Variant:
    """The model as the provider sees it: cut while it generates, untouched otherwise."""

    def __init__(self, loaded: LoadedModel, mask: Mask | None):
        """Hold the intact model, its tokenizer and what is removed while it generates."""
        self.model: CausalModel = loaded.model
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.mask = mask

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def generate(self, **options: object) -> Tensor:
        """Generate as `transformers` does, greedily unless sampling is asked for.

        Args:
            options: What the provider passes; the settings of sampling are taken out of it.
        """
        from transformers import GenerationConfig

        options.pop("do_sample", None)
        sampling = {
            name: value
            for name in ("temperature", "top_p", "top_k")
            if (value := options.pop(name, None)) is not None
        }
        # A temperature of zero is how Inspect asks for greedy decoding.
        sample = bool(sampling) and sampling.get("temperature") != 0
        config = GenerationConfig(
            max_new_tokens=options.pop("max_new_tokens", None),
            do_sample=sample,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=sorted(end_tokens(self.model, self.tokenizer)) or None,
            **(sampling if sample else {}),
        )
        # The provider calls from inside an inference mode, where weights must not be changed.
        with torch.inference_mode(mode=False):
            if self.mask is None:
                return self._generate(config, options)
            with removed(self.model, self.mask):
                return self._generate(config, options)

    def _generate(self, config: DecodingConfig, options: dict[str, object]) -> Tensor:
        with evaluating(self.model), decoding_as(self.model, config):
            return self.model.generate(**options)


class ResectAPI(HuggingFaceAPI):
    """Provider `resect`: a checkpoint folder, a Hub id, or a model in memory, cut or whole."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's own signature)
        **model_args: Any,
    ) -> None:
        """Load a model, or take one from memory, and check the mask against it.

        Args:
            model_name: A checkpoint folder or a Hub id, `id@revision` for a fixed revision; any
                name for a model in memory.
            base_url: Not used.
            api_key: Not used.
            config: Inspect's settings; its seed seeds sampling.
            model_args: `mask` (file or Mask), `format` (`chat` or `raw`), `dtype`, `device`,
                `enable_thinking`, and for a model in memory `hf_model` and `hf_tokenizer`.

        Raises:
            PrerequisiteError: Something that the user can fix, in the words of resect; Inspect
                prints it without a traceback.
        """
        # Its parent would load the model in its own way; only the grandparent is wanted.
        ModelAPI.__init__(self, model_name, base_url, api_key, [], config)
        try:
            unknown = sorted(set(model_args) - set(ARGUMENTS))
            if unknown:
                raise InputError(
                    "unknown model argument of the resect provider",
                    got=", ".join(unknown),
                    allowed=", ".join(ARGUMENTS),
                )
            self._take(model_name, **model_args)
        except ResectError as error:
            raise PrerequisiteError(str(error)) from error
        if config.seed is not None:
            from transformers import set_seed

            set_seed(config.seed)

    def _take(
        self,
        name: str,
        *,
        mask: Mask | str | Path | None = None,
        format: Format = "chat",
        dtype: str | None = None,
        device: str | None = None,
        enable_thinking: bool = False,
        hf_model: CausalModel | None = None,
        hf_tokenizer: Tokenizer | None = None,
    ) -> None:
        """Load a model, or take the one in memory, and check what is asked of it."""
        self.in_memory = hf_model is not None
        if hf_model is None:
            loaded = load_model(name, dtype=dtype, device=device)
        elif hf_tokenizer is None:
            raise InputError("a model in memory needs its tokenizer", fix="pass hf_tokenizer too")
        else:
            loaded = LoadedModel(hf_model, hf_tokenizer)
        model, tokenizer = loaded
        cut = as_mask(mask)
        check_mask(model, cut)
        if format not in ("chat", "raw"):
            raise InputError("unknown format", got=repr(format), allowed="chat, raw")
        self.format = format
        check_format(tokenizer, format)
        # A copy, because padding is set on it; the caller's own stays as it is.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = tokenizer.convert_ids_to_tokens([pad_id(tokenizer)])[0]
        self.model = Variant(loaded, cut)
        self.device = str(model.device)
        self.do_sample = False
        self.tokenizer_call_args = {"add_special_tokens": False}
        self.enable_thinking = enable_thinking
        self.batch_size = self.chat_template = self.use_chat_template = self.hidden_states = None
        self.context = context_of(model)
        self.facts = {
            "model_fingerprint": model_fingerprint(model),
            "format": format,
            **mask_facts(cut),
        }
        if cut is not None:
            # Inspect's screen shows warnings and says nothing of a model's arguments.
            logger.warning(
                "%s answers with %s weights removed, %.4g %% of the prunable ones (mask %s)",
                name,
                f"{cut.count:,}",
                100 * cut.fraction,
                cut.hash,
            )

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer as the Hugging Face provider does; the output's metadata names the mask."""
        output = await super().generate(input, tools, tool_choice, config)
        output.metadata = {**(output.metadata or {}), "resect": self.facts}
        return output

    def hf_chat(self, messages: list[ChatMessage], tools: list[ToolInfo]) -> str:
        """Return the prompt as one text.

        Raises:
            InputError: It leaves no room for a reply, or tools are used in `raw` format.
        """
        if self.format == "chat":
            text = super().hf_chat(messages, tools)
        elif tools:
            raise InputError("tools need a chat template", fix="leave -M format=raw out")
        else:
            text = raw_prompt(messages)
        length = self._count(text)
        if self.context is not None and length >= self.context:
            raise InputError(
                "a prompt leaves no room for a reply",
                got=f"{length} tokens",
                allowed=f"fewer than the context of {self.context} tokens",
            )
        return text

    def _apply_chat_template(
        self,
        hf_messages: list[ChatMessage],
        tools_list: list[dict[str, Any]],
        chat_template: str | None,
    ) -> str:
        goes_on = bool(hf_messages) and hf_messages[-1].role == "assistant"
        with bounded_template("a conversation"):
            text: str = self.tokenizer.apply_chat_template(
                [message.model_dump(exclude_none=True) for message in hf_messages],
                chat_template=chat_template,
                tools=tools_list or None,
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
                enable_thinking=self.enable_thinking,
            )
        return text

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def count_text_tokens(self, text: str) -> int:
        """Count tokens with the model's own tokenizer."""
        return self._count(text)

    def max_tokens(self) -> int | None:
        """Return the length at which replies are cut off by default, as `resect eval` has it."""
        return GenerationSettings().max_new_tokens

    def close(self) -> None:
        """Let go of a model that was loaded here; leave one that lives in memory to its owner."""
        if not self.in_memory:
            super().close()


def raw_prompt(messages: list[ChatMessage]) -> str:
    """Return the turns a line each; an assistant's turn at the end is continued."""
    turns = message_content_to_string(copy.deepcopy(messages))
    prefix = turns.pop().text if turns and turns[-1].role == "assistant" else ""
    return "\n".join(turn.text for turn in turns) + "\n" + prefix
