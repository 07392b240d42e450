"""Real architectures at tiny size, built from their configs; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from resect.edit.live import removed
from resect.evaluation.decode import GenerationSettings, generate
from resect.model import prunable_tensors
from resect.records import Encoded
from resect.weights.mask import Mask, MaskTensor

VOCABULARY = 64
WORDS = [f"w{n}" for n in range(VOCABULARY - 4)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


_HEAD = {"head_dim": 8}
_WINDOW = {"sliding_window": 8}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_SHARED = {"shared_expert_intermediate_size": 12}
_DEEPSEEK = {
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_shared_experts": 1,
    "num_key_value_heads": 2,
}

# name -> (model class, configuration class, what differs from _COMMON)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _WINDOW),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _HEAD),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", _WINDOW),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _HEAD | _WINDOW),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _HEAD | _WINDOW),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_positions": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {"parallel_attn": True}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 2}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _EXPERTS),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _EXPERTS | _HEAD),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", _EXPERTS | _SHARED),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", _EXPERTS),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", _EXPERTS | _HEAD | _WINDOW),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        _EXPERTS | _HEAD | _SHARED | _LINEAR_ATTENTION,
    ),
    "qwen3_5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", _HEAD | _LINEAR_ATTENTION),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _DEEPSEEK),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _EXPERTS | _HEAD | {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 1},
    ),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", _EXPERTS),
}


def configuration(architecture: str) -> Any:
    """Return the configuration of a tiny model; "gemma3_vision" is a multi-modal wrapper."""
    if architecture == "gemma3_vision":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        return transformers.Gemma3Config(
            text_config={**_COMMON, **_HEAD, **_WINDOW}, vision_config=vision
        )
    _, name, changes = ARCHITECTURES[architecture]
    return getattr(transformers, name)(**(_COMMON | changes))


def build(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model; weights are large enough that losses react to a cut."""
    name = "Gemma3ForConditionalGeneration"
    if architecture in ARCHITECTURES:
        name = ARCHITECTURES[architecture][0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = getattr(transformers, name)(configuration(architecture))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


@cache
def tokenizer() -> Any:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<user>": 2, "<assistant>": 3}
    vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
    )


def save(architecture: str, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Write a checkpoint folder as a user has it."""
    dtype = options.pop("dtype", torch.float32)
    build(architecture, seed, dtype).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def examples(count: int = 6, seed: int = 0, shortest: int = 5) -> list[Encoded]:
    """Return encoded examples of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    encoded = []
    for n in range(count):
        length = shortest + int(torch.randint(0, 8, (1,), generator=draw))
        ids = torch.randint(4, VOCABULARY, (length,), generator=draw).tolist()
        scored = int(torch.randint(1, length - 1, (1,), generator=draw))
        encoded.append(Encoded(f"e{n}", tuple(ids), scored))
    return encoded


def rows(count: int, prefix: str, *, split: str = "") -> list[dict[str, Any]]:
    """Return prompt-completion rows of words that the tokenizer knows."""
    draw = torch.Generator().manual_seed(count + len(prefix) * 1000)

    def words(length: int) -> str:
        positions = torch.randint(0, len(WORDS), (length,), generator=draw).tolist()
        return " ".join(WORDS[position] for position in positions)

    return [
        {
            "id": f"{prefix}{n}",
            "prompt": words(5),
            "completion": words(6),
            "category": "ab"[n % 2],
            **({"split": split} if split else {}),
        }
        for n in range(count)
    ]


def cut(model: Any, share: float = 0.3, seed: int = 0) -> Mask:
    """Return a mask of that share of all prunable weights; enough to change what a model says."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in prunable_tensors(model).items():
        places = torch.rand(tensor.numel(), generator=draw) < share
        index = places.nonzero()[:, 0]
        tensors[name] = MaskTensor(
            tuple(tensor.shape),
            index,
            tensor.reshape(-1)[index].clone(),
            torch.zeros(len(index), dtype=torch.uint8),
        )
    return Mask(tensors, {})


def answer_half(rows: list[dict[str, Any]], model: Any, mask: Mask, tokens: int = 6) -> None:
    """Make the cut model's own greedy chat reply the reference of every second row."""
    ids = [
        tokenizer().apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for row in rows
    ]
    with removed(model, mask):
        replies = generate(model, tokenizer(), ids, GenerationSettings(tokens))
    for row, reply in list(zip(rows, replies, strict=True))[::2]:
        row["completion"] = tokenizer().decode(reply, skip_special_tokens=True)
