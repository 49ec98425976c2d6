"""Trained models."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Union, overload

from . import _folio
from ._folio import FolioError, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Model:
    """A trained model with its tokenizer. Model.load() makes one."""

    def __init__(self, inner: _folio.Model) -> None:
        self._inner = inner

    @classmethod
    def load(cls, path: Union[str, "os.PathLike[str]", None] = None, *, precision: Optional[str] = None) -> Model:
        """Loads a checkpoint.

        ``path`` is a run or a sweep, of which the checkpoint with the lowest evaluation loss is loaded, or a checkpoint such
        as ``runs/quick/latest`` or ``runs/quick/checkpoint_3``; without one, it is the newest run in ``runs/``.
        ``precision`` is f32, bf16 or int8; by default, the one the model was trained in.
        """
        return cls(_folio.Model(None if path is None else os.fspath(path), precision))

    @overload
    def generate(self, prompt: str = ..., *, num_samples: None = ..., **options: Any) -> str: ...

    @overload
    def generate(self, prompt: str = ..., *, num_samples: int, **options: Any) -> List[str]: ...

    def generate(self, prompt: str = "", *, num_samples: Optional[int] = None, **options: Any) -> Union[str, List[str]]:
        """Continues a prompt. Returns the prompt and its continuation; with ``num_samples``, a list of that many texts.

        Options, as in ``folio generate``: max_new_tokens (100), temperature (1; 0 takes the likeliest token), top_k, top_p,
        min_p, repetition_penalty, stop (a text or several to stop before), past_context (exact, rolling or stop),
        special_tokens, seed (by default a new one every time). Sample i has the seed plus i.
        """
        count = 1 if num_samples is None else num_samples
        if count < 1:
            raise FolioError(f"`num_samples {count}` is out of range; use at least 1")
        texts = [prompt] * count
        for pieces in self._generate(prompt, count, options):
            for index, piece in pieces:
                texts[index] += piece
        return texts[0] if num_samples is None else texts

    def stream(self, prompt: str = "", **options: Any) -> Iterator[str]:
        """Continues a prompt, piece by piece: an iterator of the text after the prompt. Options as in generate()."""
        for pieces in self._generate(prompt, 1, options):
            for _, piece in pieces:
                yield piece

    def _generate(self, prompt: str, count: int, options: Dict[str, Any]) -> Iterator[Any]:
        known = {
            "max_new_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "stop",
            "past_context",
            "special_tokens",
            "seed",
        }
        for name in options:
            if name not in known:
                raise FolioError(f"unknown option {name!r}: choose from {', '.join(sorted(known))}")
        stop = options.get("stop")
        if isinstance(stop, str):
            options = {**options, "stop": [stop]}
        if options.get("seed") is None:
            options = {**options, "seed": time.time_ns()}
        generation = self._inner.generate(prompt, count, options)
        while True:
            pieces = generation.next()
            if pieces is None:
                return
            yield pieces

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits of the token that follows each id, an array of shape (len(ids), vocab_size).

        At most ``config["block_size"]`` ids. Computed in f32, or in bf16 if that is the precision of the model.
        """
        return self._inner.logits([int(i) for i in ids])

    def losses(self, text: str, *, special_tokens: bool = False) -> npt.NDArray[np.float32]:
        """The loss of each token of a text after the first: -log of its probability, in nats.

        As in training, the text is cut into sequences of ``config["block_size"]`` tokens, each predicted from those before it
        in its sequence. ``losses(text).mean()`` is the loss that ``folio eval --data`` prints.
        """
        return self._inner.losses(text, special_tokens)

    def state_dict(self) -> Dict[str, npt.NDArray[np.float32]]:
        """The weights by their names in transformers' GPT-2.

        The arrays are read-only views of the file of the checkpoint, mapped into memory and not copied. Linear weights have the
        shape (inputs, outputs).
        """
        import numpy as np

        path = self.checkpoint / "model.safetensors"
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
        except OSError as error:
            raise FolioError(f"cannot read {path}: {error.strerror}") from error
        header.pop("__metadata__", None)
        return {name: _tensor(data, entry) for name, entry in header.items()}

    def export(
        self, format: str, path: Union[str, "os.PathLike[str]"], *, type: Optional[str] = None, overwrite: bool = False
    ) -> Path:
        """Writes the checkpoint for other programs and returns the path.

        ``format`` is gguf (llama.cpp, ollama, LM Studio), hf (transformers; a directory) or onnx. ``type`` is that of the
        weights: f32, f16, bf16, or q8_0 for gguf; by default f16 for gguf and f32 otherwise. ``overwrite`` replaces an earlier
        export.
        """
        _folio.export(self.checkpoint, format, type, Path(path), overwrite)
        return Path(path)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._inner.tokenizer

    @property
    def config(self) -> Dict[str, Any]:
        """The sizes of the model: vocab_size, block_size, n_emb, n_heads, n_blocks and so on."""
        return self._inner.config

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self._inner.parameters

    @property
    def precision(self) -> str:
        """The format of the weights in generation: f32, bf16 or int8."""
        return self._inner.precision

    @property
    def checkpoint(self) -> Path:
        """The directory of the checkpoint."""
        return Path(self._inner.checkpoint)

    @property
    def eval_loss(self) -> Optional[float]:
        """The evaluation loss of the checkpoint in nats per token, if it was saved."""
        return self._inner.eval_loss

    def __repr__(self) -> str:
        loss = "" if self.eval_loss is None else f", eval loss {self.eval_loss:.4f}"
        return f"<folio.Model: {self.checkpoint}, {self.parameters:,} parameters in {self.precision}{loss}>"


def _tensor(data: Any, entry: Dict[str, Any]) -> Any:
    """A tensor of a safetensors file, as a view of its bytes."""
    start, end = entry["data_offsets"]
    types = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
    return data[start:end].view(types[entry["dtype"]]).reshape(entry["shape"])
