"""The policy section of a config: which model, and how it is set up for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lion_lightning.models.checkpoints.export_files import require_intact
from lion_lightning.models.embeddings import (
    add_token_rows,
    embedding_names,
    keep_untied,
    new_rows,
    train_padding_row,
    vocabulary_rows,
)
from lion_lightning.models.generation.settings import settings_of_model
from lion_lightning.models.lora import LoRASpec
from lion_lightning.models.model_configs import (
    config_from,
    is_classifier,
    not_loadable,
    require_known,
    require_safetensors,
    stored_config,
    without_dropout,
)
from lion_lightning.models.packing.liger import apply_liger
from lion_lightning.models.policy import PolicyModel
from lion_lightning.models.quantization import NF4Spec, keep_layout
from lion_lightning.models.settings import asked_spec, check_types, spec_from
from lion_lightning.models.weights.checks import SAME_HEAD, HeadChange, WrongWeightsError, load_complete
from lion_lightning.models.weights.dtensor import reshard
from lion_lightning.models.weights.fsdp import Sharding
from lion_lightning.models.weights.sharded_loading import (
    ShardedLoadingError,
    WeightFiles,
    init_empty,
    init_head,
    read_parts,
    require_matching_shapes,
    start_new_rows,
    tensor_names,
    to_meta,
)
from lion_lightning.ops.attention import PATHS
from lion_lightning.ops.recompute import Recompute, set_recompute

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass
class PolicySpec:
    """How to build a policy or a reference. One of ``path`` and ``config`` is given.

    Attributes:
        path: Folder or hub id of a causal LM whose weights are loaded. Safetensors only.
        config: Folder or hub id with a ``config.json``, or a mapping with a ``model_type``: the model starts from
            random weights.
        revision: Hub revision.
        dtype: Dtype of the weights. Keep ``float32`` with mixed precision; use ``bfloat16`` with ``bf16-true``.
        attention: ``lion`` (packed rows, fastest path), one of its single paths (``lion_sdpa``, ``lion_varlen``,
            ``lion_flash``, ``lion_dense``), or any ``attn_implementation`` of transformers, which runs padded.
        recompute: What the backward pass computes again instead of keeping it: ``none``; ``elementwise``, all but
            matrix products and attention (less memory, a few percent more time); ``full``, entire layers, also called
            gradient checkpointing (least memory, up to a third more time).
        liger: Swap in Liger's fused GPU kernels where liger-kernel is installed.
        lora: Train adapters instead of the weights.
        quantization: Hold the weights that the adapters are put on in 4 bits (QLoRA); needs ``lora`` and ``path``.
        trainable_rows: Which rows of the embedding and head learn: None for all, ``new`` for the tokens that were
            added, a number for all rows from it up, or a list of rows. (LIONs: 128000 for Llama 3.)
        trust_remote_code: Run code that comes with the model. Off: such a model is refused.
    """

    path: str | None = None
    config: str | dict[str, Any] | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str = "lion"
    recompute: Recompute = "none"
    liger: bool = False
    lora: LoRASpec | None = None
    quantization: NF4Spec | None = None
    trainable_rows: Literal["new"] | int | list[int] | None = None
    trust_remote_code: bool = False

    auto_class: ClassVar[Any] = AutoModelForCausalLM  # of transformers, which makes such models
    known: ClassVar[tuple[str, Container[str]]] = ("causal LM", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # and of which types

    def __post_init__(self) -> None:
        """Check the settings; ``lora`` and ``quantization`` may be mappings, as they come back from a checkpoint."""
        self.path = os.fspath(self.path) if isinstance(self.path, os.PathLike) else self.path
        self.config = os.fspath(self.config) if isinstance(self.config, os.PathLike) else self.config
        check_types(PolicySpec, vars(self), "policy")
        if isinstance(self.lora, dict):
            self.lora = spec_from(LoRASpec, self.lora, "policy.lora")
        if isinstance(self.quantization, dict):
            self.quantization = spec_from(NF4Spec, self.quantization, "policy.quantization")

    @classmethod
    def of(cls, model: PolicySpec | str | dict[str, Any]) -> PolicySpec:
        """A spec from a spec, a path, or a mapping, which is how checkpoints hold it.

        Raises:
            ValueError: A mapping has unknown settings, or sets ``trust_remote_code``.
        """
        if isinstance(model, str):
            return cls(path=model)
        return asked_spec(cls, model, "policy")

    def build(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        new_ids: list[int] | None = None,
        sharding: Sharding | None = None,
    ) -> PolicyModel:
        """Load or create the model and set it up for training on packed rows.

        Args:
            tokenizer: If given, the embeddings grow to hold all its tokens.
            new_ids: Tokens that the base model was not trained on.
            sharding: How to shard the model over ranks, which must all call this; None for a full model. Each rank then
                reads its rows of the weights from ``path``; random weights are made in full on every rank.

        Raises:
            ValueError: The model is missing, has no safetensors weights, or cannot be built.
        """
        if self.quantization is not None:
            self.quantization.require(adapted=self.lora is not None, stored=self.path is not None, split=sharding)
        if self.lora is not None and sharding is not None and sharding.tensor_mesh is not None:
            raise ValueError("policy.lora: tensor parallelism splits no adapters; leave tensor_parallel_size at 1")
        vocabulary = len(tokenizer) if tokenizer is not None else 0
        new_ids = new_ids or []
        if sharding is not None and self.path is not None:
            try:
                return self._build_sharded(self.path, vocabulary, new_ids, sharding)
            except ShardedLoadingError as error:
                log.warning("%s cannot be loaded sharded (%s), so every rank loads all of it first.", self.path, error)
        policy = self._prepared(self.build_base(vocabulary, new_ids), new_ids)
        if sharding is not None:
            sharding.apply(policy)
        return policy

    def build_base(self, vocabulary: int, new_ids: list[int]) -> PreTrainedModel:
        """The model before any adapters, with ``vocabulary`` or more rows of embeddings."""
        model = self._load()
        if self.quantization is not None:
            keep_layout(model)
        if vocabulary:
            add_token_rows(model, vocabulary, new_ids)
        return model

    def _build_sharded(self, path: str, vocabulary: int, new_ids: list[int], sharding: Sharding) -> PolicyModel:
        """The same model; no rank ever holds more than its own rows and one layer."""
        require_safetensors(Path(path))
        require_intact(Path(path))
        try:
            weight_files = WeightFiles.find(path, self.revision)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(not_loadable(path, error)) from error
        with weight_files as files:
            config = self.load_config()
            known = config.get_text_config().vocab_size
            model = self._load(rows=max(vocabulary, known))
            head = self.head_change(config)
            init_head(model, head.new)
            embeddings = embedding_names(model)  # before adapters and FSDP change the names
            policy = self._prepared(model, new_ids, probe=False)
            names = tensor_names(model, files, head.unused)
            to_meta(model, names)  # adapters stay: their initial values are not in the files
            sharding.apply(policy)
            read_parts(model, files, names, sharding.device)
        start_new_rows(model, embeddings, new_rows(known, vocabulary, new_ids))
        policy.probe()  # not possible at construction, without weights
        reshard(policy)
        return policy

    def adapted(self, model: PreTrainedModel, new_ids: list[int]) -> nn.Module:
        """Set a model up for training, in place: kernels, adapters, recomputation; ``new_ids`` as in :meth:`build`."""
        if self.liger:
            apply_liger(model)
        adapted = self.with_adapters(model, new_ids)
        set_recompute(model, self.recompute)
        return adapted

    def with_adapters(self, model: PreTrainedModel, new_ids: list[int]) -> nn.Module:
        """The model in the adapters of ``lora``, if there are any."""
        return self.lora.apply(model, new_ids) if self.lora else model

    def wrap(self, model: nn.Module, packed: bool | None = None, probe: bool = True) -> PolicyModel:
        """The model behind the forward that stages call; arguments as of :class:`PolicyModel`."""
        return PolicyModel(model, packed, probe)

    def head_change(self, config: PretrainedConfig) -> HeadChange:
        """Weights in which the model and files with this config differ: here, none."""
        return SAME_HEAD

    def _prepared(self, model: PreTrainedModel, new_ids: list[int], probe: bool = True) -> PolicyModel:
        # transformers loads in evaluation mode, which turns gradient checkpointing off
        return self.wrap(self.adapted(model, new_ids), packed=self.attention in PATHS, probe=probe).train()

    def load_config(self) -> PretrainedConfig:
        """The transformers config, dropout off.

        Raises:
            ValueError: Not exactly one of ``path`` and ``config`` is given, no config is found, or it is not that of a
                causal LM.
        """
        config = self.read_config()
        if is_classifier(config.architectures):
            raise ValueError(
                f"policy: {self.path or self.config} is a reward model, which writes no answers; give a causal LM, and "
                "the reward model to RewardModelJudge or RewardModule"
            )
        return config

    def read_config(self) -> PretrainedConfig:
        """The transformers config of whatever model it is, dropout off."""
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "policy: give either `path` (load weights) or `config` (start from random weights), and null for the "
                "other; on a command line both at once: --model.policy='{path: DIR, config: null}'."
            )
        if isinstance(self.config, Mapping):
            config = config_from(self.config, "policy.config")
        else:
            config = stored_config(str(self.path or self.config), self.revision, self.trust_remote_code)
        return cast("PretrainedConfig", without_dropout(config))

    def rows_to_train(self, model: PreTrainedModel, new_ids: list[int]) -> list[int] | None:
        """Rows of the embeddings to train; None for all."""
        if self.trainable_rows is None or isinstance(self.trainable_rows, list):
            return self.trainable_rows
        return new_ids if self.trainable_rows == "new" else list(range(self.trainable_rows, vocabulary_rows(model)))

    def _load(self, rows: int | None = None) -> PreTrainedModel:
        """The model without adapters; with ``rows``, an empty one (init_empty) with so many rows of the embeddings."""
        try:
            model = self._create(rows, attn_implementation=self.attention)
        except KeyError as error:
            if error.args != (self.attention,):
                raise
            log.warning("%s has custom attention code, so policy.attention is ignored.", self.path or self.config)
            model = self._create(rows)
        train_padding_row(model)
        return model

    def _create(self, rows: int | None, **options: Any) -> PreTrainedModel:
        config = self.load_config()
        options |= {"dtype": getattr(torch, self.dtype), "trust_remote_code": self.trust_remote_code}
        if self.path is not None:
            require_safetensors(Path(self.path))
            require_intact(Path(self.path))
        source = self.path or self.config
        settings = settings_of_model(source, self.revision, config)
        try:
            if self.path is not None and rows is None:
                model = self._load_weights(self.path, config, {**options, "generation_config": settings})
            elif rows is None:
                model = self.auto_class.from_config(config, **options)
            else:
                config.get_text_config().vocab_size = rows
                model = init_empty(partial(self.auto_class.from_config, config, **options))
        except (ShardedLoadingError, WrongWeightsError, ModuleNotFoundError):
            raise
        except Exception as error:  # a malformed config may raise anything in transformers and its models
            if isinstance(error, KeyError) and error.args == (self.attention,):  # handled by _load
                raise
            raise ValueError(not_loadable(source if isinstance(source, str) else "policy.config", error)) from error
        if not self.trust_remote_code:
            require_known(model.config, *self.known)
        model.generation_config = settings
        return model

    def _load_weights(self, path: str, config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
        auto = self.auto_class
        options = {**options, "config": config, "revision": self.revision, "use_safetensors": True}
        if self.quantization is not None:
            options["quantization_config"] = self.quantization.config(options["dtype"])
        if not self.trust_remote_code:  # custom code may not run on the meta device
            require_matching_shapes(path, self.revision, config, partial(auto.from_config, config))
        model: PreTrainedModel = load_complete(auto.from_pretrained, path, self.head_change(config), **options)
        keep_untied(model)
        return model
