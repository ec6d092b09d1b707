"""ModelConfig: the numbers that turn one CausalLM into GPT-2, Llama, Qwen2 or DeepSeek-V2/V3. No torch here.

`model_type` names the family; a family fixes the parts that its published checkpoints fix (norm, positions, activation, biases).
`model_type: tinyseek` leaves every part free; such a model loads here alone.

Shape letters, one table for the whole project (a suffix on a tensor's name is its shape):

    B sequences        D model width          E experts
    T positions        H heads                A active experts a token
    S cached positions K head width (qk)      I inner width of an MLP
    N flattened B*T    C latent width (MLA)   R rotary width (MLA)      V vocabulary
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tinyseek.settings import Settings

Family = Literal["gpt2", "llama", "qwen2", "deepseek_v2", "deepseek_v3", "tinyseek"]

# What each family's checkpoints fix. A config that says otherwise could not be read by transformers as that family.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm",
        "positions": "learned",
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    "llama": {"norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated_mlp": True},
    "qwen2": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "silu",
        "gated_mlp": True,
        "qkv_bias": True,
        "output_bias": False,
        "mlp_bias": False,
    },
    "deepseek_v2": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "silu",
        "gated_mlp": True,
        "qkv_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "scoring_func": "softmax",
        "rope_interleave": True,
    },
    "deepseek_v3": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "silu",
        "gated_mlp": True,
        "qkv_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "tinyseek": {},
}


class RopeScaling(Settings):
    """How rotary frequencies are stretched beyond the length that a model was trained on."""

    rope_type: Literal["linear", "yarn", "llama3"] = Field("yarn", description="the rule; YaRN is arXiv 2309.00071")
    factor: float = Field(1.0, ge=1.0, description="times the original context")
    original_max_position_embeddings: int | None = Field(
        None, ge=1, description="positions trained on before stretching"
    )
    beta_fast: float = Field(32.0, gt=0, description="YaRN: rotations above which a dimension is left as it is")
    beta_slow: float = Field(1.0, gt=0, description="YaRN: rotations below which a dimension is fully interpolated")
    mscale: float | None = Field(None, description="YaRN: temperature weight for the rotated part")
    mscale_all_dim: float | None = Field(None, description="YaRN: temperature weight for the whole softmax (DeepSeek)")
    attention_factor: float | None = Field(None, description="YaRN: sets the temperature outright")
    low_freq_factor: float = Field(1.0, gt=0, description="Llama 3.1's rule")
    high_freq_factor: float = Field(4.0, gt=0, description="Llama 3.1's rule")


class ModelConfig(Settings):
    """The shape of a model. Names are Hugging Face's where it has one."""

    model_type: Family = Field("deepseek_v3", description="the family, which decides the names in the checkpoint")
    vocab_size: int = Field(4096, ge=1, description="tokens")
    hidden_size: int = Field(256, ge=1, description="model width D")
    num_hidden_layers: int = Field(6, ge=1, description="transformer blocks")
    num_attention_heads: int = Field(4, ge=1, description="query heads H")
    num_key_value_heads: int | None = Field(
        None, ge=1, description="key/value heads; fewer than H is grouped-query attention"
    )
    head_dim: int | None = Field(None, ge=1, description="head width K without MLA; hidden_size / heads if none")
    intermediate_size: int = Field(704, ge=1, description="inner width I of a dense MLP")
    max_position_embeddings: int = Field(1024, ge=1, description="longest context, tokens")
    tie_word_embeddings: bool = Field(False, description="share the embedding with the output head")
    initializer_range: float = Field(0.02, gt=0, le=1, description="standard deviation of the initial weights")

    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="kind of normalisation")
    norm_eps: float = Field(1e-6, gt=0, description="added to the variance")
    activation: Literal["silu", "gelu", "gelu_tanh"] = Field("silu", description="the MLP's non-linearity")
    gated_mlp: bool = Field(True, description="SwiGLU's gate (arXiv 2002.05202), or a plain two-layer MLP")
    qkv_bias: bool = Field(False, description="bias on the query, key and value projections")
    output_bias: bool = Field(False, description="bias on attention's output projection")
    mlp_bias: bool = Field(False, description="bias in the MLPs")

    positions: Literal["rotary", "learned", "sinusoidal"] = Field("rotary", description="how positions enter")
    rope_theta: float = Field(10000.0, gt=0, description="rotary base")
    rope_scaling: RopeScaling | None = Field(None, description="stretching of the context")
    rope_interleave: bool = Field(True, description="MLA: rotate even/odd pairs (DeepSeek's layout) or halves")
    sliding_window: int | None = Field(
        None, ge=1, description="tokens that a position sees, itself included; none for all"
    )
    sliding_from_layer: int = Field(0, ge=0, description="first layer with the window (Qwen2's max_window_layers)")

    kv_lora_rank: int | None = Field(
        None, ge=1, description="MLA: width C of the cached latent; none for ordinary attention"
    )
    q_lora_rank: int | None = Field(None, ge=1, description="MLA: rank of the query projection; none for a full one")
    qk_nope_head_dim: int = Field(32, ge=1, description="MLA: head width without position")
    qk_rope_head_dim: int = Field(32, ge=2, description="MLA: head width R with rotary position, shared by all heads")
    v_head_dim: int = Field(64, ge=1, description="MLA: value width a head")

    n_routed_experts: int = Field(0, ge=0, description="experts E a layer; 0 for dense")
    num_experts_per_tok: int = Field(2, ge=1, description="active experts A a token")
    n_shared_experts: int = Field(0, ge=0, description="experts that every token visits")
    moe_intermediate_size: int = Field(176, ge=1, description="inner width of one expert")
    first_k_dense_replace: int = Field(1, ge=0, description="dense layers before the first mixture")
    n_group: int = Field(1, ge=1, description="groups of experts, one a node in the paper")
    topk_group: int = Field(1, ge=1, description="groups that a token may use")
    routed_scaling_factor: float = Field(1.0, gt=0, description="the expert weights sum to this")
    norm_topk_prob: bool = Field(True, description="normalise the chosen experts' weights")
    scoring_func: Literal["sigmoid", "softmax"] = Field("sigmoid", description="affinity to score")
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = Field(
        "noaux_tc", description="how experts are chosen"
    )
    balance_bias_rate: float = Field(
        0.001, ge=0, le=1, description="step of the balancing bias (gamma of arXiv 2408.15664)"
    )
    balance_loss_weight: float = Field(
        0.0001, ge=0, le=1, description="weight of the sequence-wise balance loss (V3 eq. 17)"
    )

    bos_token_id: int | None = Field(None, ge=0, description="the token that begins a text, written for other programs")
    eos_token_id: int | list[int] | None = Field(None, description="the token or tokens that end one")

    num_nextn_predict_layers: int = Field(
        0, ge=0, le=4, description="multi-token prediction modules (training, speculation)"
    )
    mtp_loss_weight: float = Field(0.3, ge=0, le=10, description="lambda of V3 eq. 25")

    @model_validator(mode="before")
    @classmethod
    def _family_parts(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        family = values.get("model_type", cls.model_fields["model_type"].default)
        return {**FAMILIES.get(family, {}), **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for part, value in FAMILIES[self.model_type].items():
            if getattr(self, part) != value:
                raise ValueError(
                    f"{self.model_type} checkpoints have {part}={value}; for another use model_type=tinyseek"
                )
        mla = self.kv_lora_rank is not None
        if self.model_type.startswith("deepseek") and not mla:
            raise ValueError(f"{self.model_type} needs kv_lora_rank (multi-head latent attention)")
        if self.model_type in ("gpt2", "llama", "qwen2") and (
            mla or self.n_routed_experts or self.num_nextn_predict_layers
        ):
            raise ValueError(
                f"{self.model_type} checkpoints hold no latent attention, experts or MTP; use deepseek_v3 or tinyseek"
            )
        if not mla and self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of {self.kv_heads} key/value heads"
            )
        if self.positions == "rotary" and self.rotary_dim % 2:
            raise ValueError(f"rotary width {self.rotary_dim} is odd")
        if mla and self.positions != "rotary":
            raise ValueError("latent attention (kv_lora_rank) needs positions=rotary")
        if mla and self.sliding_window:
            raise ValueError("latent attention has no sliding window; unset sliding_window or kv_lora_rank")
        if self.n_routed_experts:
            self._check_routing()
        return self

    def _check_routing(self) -> None:
        if not self.gated_mlp:
            raise ValueError("experts are gated MLPs; set gated_mlp=true")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than {self.n_routed_experts} experts"
            )
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts {self.n_routed_experts} is no multiple of n_group {self.n_group}")
        group = self.n_routed_experts // self.n_group
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} is more than n_group {self.n_group}")
        if self.topk_group * group < self.num_experts_per_tok:
            raise ValueError(f"{self.topk_group} groups of {group} hold fewer than {self.num_experts_per_tok} experts")
        if self.topk_method == "noaux_tc" and group < 2:
            raise ValueError(
                "a group's score is the sum of its two best experts; n_group must leave at least 2 a group"
            )

    @property
    def mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank is not None

    @property
    def kv_heads(self) -> int:
        """Key/value heads of ordinary attention."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key."""
        if self.mla:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def v_dim(self) -> int:
        """Width of one head's value."""
        return self.v_head_dim if self.mla else self.qk_dim

    @property
    def rotary_dim(self) -> int:
        """How many of a head's numbers are rotated."""
        return self.qk_rope_head_dim if self.mla else self.qk_dim

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's MLP is a mixture of experts."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    def window(self, layer: int) -> int | None:
        """A layer's sliding window, or none."""
        return self.sliding_window if layer >= self.sliding_from_layer else None

    def cache_numbers(self) -> int:
        """Numbers cached a token over all layers: `kv_lora_rank + qk_rope_head_dim` with MLA, `2 * kv_heads * K` without."""
        per_layer = (
            (self.kv_lora_rank + self.qk_rope_head_dim) if self.kv_lora_rank else 2 * self.kv_heads * self.qk_dim
        )
        return self.num_hidden_layers * per_layer
