"""VizLog under a real Hugging Face Trainer: what it leaves alone, what it looks at, where it writes."""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.util import tensor_util
from tensorboard_run import values
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)
from wandb_file import read_run

import vizlog
import vizlog.batch
from vizlog.callbacks.huggingface import VizLog

LENGTH = 16
SUBJECTS = ("assert", "class", "for", "import")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Transformers has handlers of its own, and prints the logs of each run."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def passages() -> list[dict[str, Any]]:
    """Passages of Python's own documentation as bytes; the label is the subject."""
    found = []
    for label, subject in enumerate(SUBJECTS):
        text = topics[subject].encode()[: 24 * LENGTH]
        found += [{"input_ids": list(text[i : i + LENGTH]), "labels": label} for i in range(0, len(text), LENGTH)]
    return [example for example in found if len(example["input_ids"]) == LENGTH]


def classifier() -> nn.Module:
    names = dict(enumerate(SUBJECTS))
    return BertForSequenceClassification(BertConfig(**_small(), num_labels=4, id2label=names))


def masked() -> nn.Module:
    return BertForMaskedLM(BertConfig(**_small()))


def language_model() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2))


def _small() -> dict[str, Any]:
    return {
        "vocab_size": 256,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
    }


def trainer(model: nn.Module, *callbacks: Any, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    of_trainer = {"train_dataset": passages()[::2], "eval_dataset": passages()[1::2]}
    given = {name: options.pop(name) for name in (*of_trainer, "data_collator", "processing_class") if name in options}
    arguments = {
        "output_dir": "out",
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    made = TrainingArguments(**{**arguments, **options})
    return kind(model, made, callbacks=list(callbacks), **{**of_trainer, **given})


def trained(make: Callable[[], nn.Module], *callbacks: Any, **options: Any) -> Trainer:
    resume = options.pop("resume_from_checkpoint", None)
    set_seed(1)
    done = trainer(make(), *callbacks, **options)
    done.train(resume_from_checkpoint=resume)
    return done


def histograms(every: int = 1, **options: Any) -> VizLog:
    return VizLog([kind(every=every) for kind in (vizlog.WeightHistograms, vizlog.GradientHistograms)], **options)


def number(value: Any) -> float:
    """A scalar of TensorBoard's, as torch's writer or vizlog wrote it."""
    return float(tensor_util.make_ndarray(value.tensor)) if value.HasField("tensor") else value.simple_value


def steps(memory: vizlog.Memory, tag: str) -> list[int]:
    return [step for step, _ in memory.of(tag)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "vizlog" and r.levelno >= logging.WARNING]


@pytest.mark.parametrize("best", [False, True])
def test_a_short_training_is_looked_at_once_more_as_it_ends(*, best: bool, tmp_path: Path) -> None:
    """Not where the best model takes the last one's place before that."""
    saving = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    memory = vizlog.Memory()
    options = saving | {"load_best_model_at_end": True, "output_dir": str(tmp_path)} if best else {}
    trained(classifier, VizLog(to=memory), max_steps=3, **options)
    assert steps(memory, "weights/classifier.weight") == ([1] if best else [1, 3])


# Training is left alone -----------------------------------------------------------------------------------------------


def as_language(text: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in text]


class Bytes:
    """As much of a tokenizer as masking needs."""

    pad_token = mask_token = "_"
    mask_token_id = 95
    pad_token_id = 95

    def __len__(self) -> int:
        return 256

    def get_special_tokens_mask(self, ids: list[int], **_: Any) -> list[int]:
        return [0] * len(ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        return ord(token)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [chr(number) for number in ids]

    def pad(self, examples: list[dict[str, Any]], **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([one["input_ids"] for one in examples])}


def masking(**options: Any) -> dict[str, Any]:
    return {"data_collator": DataCollatorForLanguageModeling(Bytes(), **options), "remove_unused_columns": False}


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "plain": (classifier, dict),
    "accumulation with a rest": (classifier, lambda: {"gradient_accumulation_steps": 4, "num_train_epochs": 3}),
    "bf16": (classifier, lambda: {"bf16": True}),
    "compiled": (classifier, lambda: {"torch_compile": True, "torch_compile_backend": "eager"}),
    "checkpointed": (
        language_model,
        lambda: {
            "gradient_checkpointing": True,
            "train_dataset": as_language(passages()[::2]),
            "eval_dataset": as_language(passages()[1::2]),
        },
    ),
    "evaluations in between": (classifier, lambda: {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}),
    "masked at random": (masked, masking),
    "masked by a seed": (masked, lambda: masking(seed=3)),
    "masked at random, nothing held out": (masked, lambda: {**masking(), "eval_dataset": None}),
    "noise in the embeddings": (classifier, lambda: {"neftune_noise_alpha": 5.0}),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical(case: str) -> None:
    make, options = CASES[case]

    def run(*callbacks: Any) -> tuple[dict[str, Tensor], Tensor, list[dict[str, Any]]]:
        done = trained(make, *callbacks, **options())
        history = [
            {k: v for k, v in row.items() if "runtime" not in k and "second" not in k} for row in done.state.log_history
        ]
        return done.model.state_dict(), torch.get_rng_state(), history

    memory = vizlog.Memory()
    plain, random_state, history = run()
    watched, random_state_2, history_2 = run(VizLog(every=2, to=memory))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(random_state, random_state_2)
    assert history == history_2
    kinds = {record.tag.split("/")[0] for _, record in memory.records}
    assert {"weights", "gradients", "updates", "activations", "saliency", "attention", "health"} <= kinds
    of_weights = {
        record.tag.removeprefix("weights/") for _, record in memory.records if record.tag.startswith("weights/")
    }
    assert of_weights == {name for name, _ in make().named_parameters()}


# Steps, gradients, epochs ---------------------------------------------------------------------------------------------


class Seen(TrainerCallback):
    """What a person would have seen: each layer's gradient when the optimizer takes it, and the weights after it."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.weights: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        layers = [
            [p.grad.double().square().sum() for p in module.parameters(recurse=False) if p.grad is not None]
            for module in model.modules()
        ]
        self.norms.append(max(math.sqrt(sum(squares)) for squares in layers))

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.weights.append(model.classifier.weight.max().item())


class Slow(vizlog.Probe):
    """Is still being finished when the training ends."""

    def measure(self, context: Any) -> None: ...

    def finish(self, measured: Any) -> Iterator[vizlog.Record]:
        time.sleep(0.3)
        yield vizlog.Scalar("slow", 1.0)


def test_steps_are_those_of_the_charts_in_tensorboard_and_wandb_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "board")
    seen = Seen()
    probes = [vizlog.GradientHistograms(every=1), vizlog.WeightHistograms("classifier", every=1), Slow(every=1)]
    trained(
        classifier,
        VizLog(probes),
        seen,
        report_to=["tensorboard", "wandb"],
        gradient_accumulation_steps=3,
        max_steps=5,
        max_grad_norm=0.1,
    )
    import wandb

    written = Path(wandb.run.dir).parent
    wandb.finish()

    board = values(Path("board"))
    charts = {tag: {step: value for (step, other), value in board.items() if other == tag} for _, tag in board}
    # The Trainer's own is the norm before clipping.
    assert min(number(value) for value in charts["train/grad_norm"].values()) > 0.1 > max(seen.norms)
    assert list(charts["train/loss"]) == list(charts["weights/classifier.weight"]) == [1, 2, 3, 4, 5]
    ours = charts["health/gradient_norm_worst"]
    np.testing.assert_allclose([number(value) for value in ours.values()], seen.norms, rtol=1e-5)
    assert list(ours) == [1, 2, 3, 4, 5]

    rows = read_run(written).rows
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    for key in ("weights/classifier/weight", "health/gradient_norm_worst"):
        assert [row["vizlog/step"] for row in rows if key in row] == [1, 2, 3, 4, 5]
    assert all(
        row["vizlog/step"] == row["train/global_step"]
        for row in rows
        if {"vizlog/step", "train/global_step"} <= row.keys()
    )
    found = [row["health/gradient_norm_worst"] for row in rows if "health/gradient_norm_worst" in row]
    np.testing.assert_allclose(found, seen.norms, rtol=1e-5)
    # All of it is in the Trainer's own file, which it closes when the training ends.
    assert list(charts["slow"]) == [1, 2, 3, 4, 5]
    assert len(list(Path("board").glob("*tfevents*"))) == 1


def test_weights_of_a_step_are_those_of_its_checkpoint_and_epochs_are_the_trainers() -> None:
    memory = vizlog.Memory()
    probes = [vizlog.WeightHistograms(every=2), vizlog.UpdateRatios(every=vizlog.EveryEpoch())]
    trained(classifier, VizLog(probes, to=memory), save_strategy="steps", save_steps=2, max_steps=15)
    assert steps(memory, "weights/classifier.weight") == [1, 2, 4, 6, 8, 10, 12, 14]
    of_step = dict(memory.of("weights/classifier.weight"))
    saved = load_file("out/checkpoint-8/model.safetensors")["classifier.weight"]
    assert (of_step[8].min, of_step[8].max) == (saved.min().item(), saved.max().item())
    an_epoch = -(-len(passages()[::2]) // 8)
    assert steps(memory, "updates/classifier.weight") == [1, 1 + an_epoch, 1 + 2 * an_epoch]


def test_a_resumed_training_goes_on_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    trained(classifier, histograms(), max_steps=4, **options)
    first = values(Path("out/vizlog"))
    options |= {"max_steps": 8, "resume_from_checkpoint": "out/checkpoint-4"}
    plain = trained(classifier, **options).model.state_dict()
    watched = trained(classifier, histograms(), **options).model.state_dict()
    both = values(Path("out/vizlog"))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert sorted(step for step, tag in both if tag == "weights/classifier.weight") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(both[key] == first[key] for key in first)
    # From an earlier checkpoint than the last step seen: what is there stays.
    trained(classifier, histograms(), **{**options, "max_steps": 6})
    assert values(Path("out/vizlog")) == both
    assert {step for step, tag in values(Path("out/vizlog-2")) if tag == "weights/classifier.weight"} == {5, 6}
    assert any("vizlog-2" in message for message in said(caplog))


def test_a_second_training_and_one_that_raised_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    class Once(TrainerCallback):
        raised = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3 and not Once.raised:
                Once.raised = True
                raise MemoryError

    ours = histograms()
    set_seed(1)
    made = trainer(classifier(), ours, Once(), max_steps=4)
    with pytest.raises(MemoryError):
        made.train()
    for _ in range(2):
        made.train()
    found = [
        sorted(step for step, tag in values(Path(folder)) if tag == "weights/classifier.weight")
        for folder in ("out/vizlog", "out/vizlog-2", "out/vizlog-3")
    ]
    assert found == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert ours.monitor is None
    assert not made.optimizer.optimizer._optimizer_step_pre_hooks
    assert not [m for m in made.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert len([message for message in said(caplog) if "reports to nothing that takes pictures" in message]) == 3


def test_a_training_that_raised_is_closed_when_another_begins() -> None:
    """As where a batch does not fit in memory, and the Trainer tries a smaller one."""

    class Closing(vizlog.Memory):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    class Once(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if ours.monitor not in held:
                held.append(ours.monitor)
                if len(held) == 1:
                    raise MemoryError

    memory, held = Closing(), []
    ours = histograms(to=memory)
    made = trainer(classifier(), ours, Once(), max_steps=1)
    with pytest.raises(MemoryError):
        made.train()
    made.train()
    assert memory.closed == len(held) == 2


# Where it writes ------------------------------------------------------------------------------------------------------


def test_a_destination_of_ones_own_comes_first_and_a_rank_that_does_not_log_writes_nothing() -> None:
    class Second(Trainer):
        def is_world_process_zero(self) -> bool:
            return False

    memory = vizlog.Memory()
    trained(classifier, histograms(to=memory), report_to=["tensorboard"], max_steps=1)
    assert steps(memory, "weights/classifier.weight") == [1]
    (board,) = Path("out/runs").iterdir()
    assert "weights/classifier.weight" not in {tag for _, tag in values(board)}
    trained(classifier, histograms(), kind=Second, output_dir="second", report_to=["tensorboard"], max_steps=1)
    trained(classifier, histograms(), kind=Second, output_dir="second", max_steps=1)
    trained(classifier, histograms(to=memory), kind=Second, output_dir="second", max_steps=1)
    assert not list(Path("second").rglob("*"))
    assert steps(memory, "weights/classifier.weight") == [1]


def test_events_that_no_trainer_sends_are_followed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """As by a loop of one's own that takes the Trainer's callbacks."""
    model, ours, control = classifier(), histograms(), TrainerControl()
    optimizer, args, state = torch.optim.SGD(model.parameters()), TrainingArguments("out", use_cpu=True), TrainerState()
    loader = DataLoader(passages(), batch_size=8, collate_fn=default_data_collator)
    ours.on_train_begin(args, state, control, model=model, optimizer=optimizer, train_dataloader=loader)
    for batch in itertools.islice(loader, 2):
        ours.on_step_begin(args, state, control)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        ours.on_step_end(args, state, control)
    ours.on_train_end(args, state, control)
    written = values(Path("out/vizlog"))
    assert [step for step, tag in written if tag == "gradients/classifier.weight"] == [1, 2]
    assert any("there is no evaluation dataset, so pictures are made of training" in line for line in said(caplog))


def test_a_hopeless_training_is_stopped() -> None:
    memory = vizlog.Memory()
    probes = [vizlog.GradientHistograms(every=2)]
    hopeless = VizLog(probes, to=memory, stop_when=lambda health: health["vizlog/gradient_norm_max"] > 0)
    made = trainer(classifier(), hopeless, max_steps=12)
    made.train()
    assert 2 < made.state.global_step < 12
    assert memory.summary["vizlog/stopped_because"]


def test_an_optimizer_that_holds_copies_of_the_parameters_is_no_reason_to_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As DeepSpeed's does: weights are seen, gradients are not, and that is said."""
    memory = vizlog.Memory()
    made = trainer(classifier(), histograms(to=memory), max_steps=2)
    made.optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    made.train()
    assert steps(memory, "weights/classifier.weight") == [1, 2]
    assert memory.of("gradients/classifier.weight") == []
    assert (
        len([message for message in said(caplog) if "none of the selected parameters had a gradient" in message]) == 1
    )


def test_what_is_no_optimizer_at_all_is_no_reason_to_stop() -> None:
    class Unknown(VizLog):
        def on_train_begin(self, *events: Any, optimizer: Any, **rest: Any) -> None:
            super().on_train_begin(*events, optimizer=object(), **rest)

    memory = vizlog.Memory()
    trained(classifier, Unknown([vizlog.WeightHistograms(every=1)], to=memory), max_steps=2)
    assert steps(memory, "weights/classifier.weight") == [1, 2]


def test_a_board_that_comes_after_us_and_closes_first_still_gets_everything(tmp_path: Path) -> None:
    """Where a callback stops the training by an error of its own, TensorBoardCallback may close before us."""
    from transformers.integrations import TensorBoardCallback

    class Impatient(TensorBoardCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "train_runtime" in logs:
                self.on_train_end(args, state, control)

    from torch.utils.tensorboard import SummaryWriter

    trained(classifier, Impatient(SummaryWriter(tmp_path / "board")), histograms(), max_steps=3)
    assert {step for step, tag in values(tmp_path / "board") if tag == "weights/classifier.weight"} == {1, 2, 3}


# The fixed batch ------------------------------------------------------------------------------------------------------


class Asks(vizlog.Probe):
    """Keeps the fixed batch that it was shown."""

    picture = False

    def __init__(self) -> None:
        super().__init__(every=1000)
        self.batch: Any = None

    def measure(self, context: Any) -> None:
        self.batch = context.batch

    def finish(self, measured: Any) -> Iterator[Any]:
        yield from ()


def shown(**options: Any) -> Any:
    asks = Asks()
    trained(options.pop("make", classifier), VizLog([asks], to=vizlog.Memory()), max_steps=1, **options)
    return asks.batch


class Stream(IterableDataset[Any]):
    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


def test_examples_are_spread_over_the_evaluation_data_and_come_with_the_names_that_are_known() -> None:
    batch = shown(processing_class=Bytes())
    held_out = passages()[1::2]
    rows = [held_out[number] for number in batch.ids]
    assert batch.inputs["input_ids"].tolist() == [row["input_ids"] for row in rows]
    assert batch.targets.tolist() == [row["labels"] for row in rows]
    assert set(batch.targets[:4].tolist()) == {0, 1, 2, 3}
    assert batch.class_names == SUBJECTS
    assert batch.token_names(0) == [chr(number) for number in rows[0]["input_ids"]]


def test_tokens_are_named_by_the_tokenizer_that_a_processor_holds() -> None:
    class Processor:
        tokenizer = Bytes()

    batch = shown(processing_class=Processor())
    assert batch.token_names(0) == [chr(number) for number in passages()[1::2][batch.ids[0]]["input_ids"]]


def test_classes_of_tokens_have_their_names_and_tokens_to_predict_have_not() -> None:
    def tagger() -> nn.Module:
        return BertForTokenClassification(BertConfig(**_small(), num_labels=4, id2label=dict(enumerate(SUBJECTS))))

    data = [{**row, "labels": [-100] + [row["labels"]] * (LENGTH - 1)} for row in passages()]
    assert shown(make=tagger, train_dataset=data, eval_dataset=data).class_names == SUBJECTS
    data = [{**row, "labels": row["input_ids"]} for row in passages()]
    assert shown(make=language_model, train_dataset=data, eval_dataset=data).class_names == ()


def test_of_several_evaluation_datasets_the_first_is_taken() -> None:
    some, others = passages()[:7], passages()[7:]
    assert len(shown(eval_dataset={"some": some, "others": others})) == 7


def test_without_evaluation_data_pictures_are_of_training_examples_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert len(shown(eval_dataset=None)) == len(passages()[::2])
    assert [m for m in said(caplog) if "there is no evaluation dataset, so pictures are made of training" in m]


def test_data_that_cannot_be_asked_by_index_gives_no_pictures_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = Stream(passages())
    assert shown(train_dataset=stream, eval_dataset=stream) is None
    (line,) = (message for message in said(caplog) if "makes no pictures of examples" in message)
    assert "Stream is iterable" in line.replace("IterableDatasetShard", "Stream")
    assert "VizLog(batch=" in line


@pytest.mark.parametrize("data", [{"words": ["a", "b"]}, {"words": torch.zeros(2, 3), "labels": torch.arange(5)}])
def test_data_that_is_no_batch_of_tensors_is_said(data: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Words(nn.Linear):
        def forward(self, words: Any = None, **_: Any) -> dict[str, Tensor]:
            return {"loss": self.weight.sum()}

    class Trains(Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return {}

    memory = vizlog.Memory()
    options = {"data_collator": lambda _: data, "remove_unused_columns": False, "kind": Trains, "max_steps": 1}
    trained(lambda: Words(2, 2), VizLog(to=memory), **options)
    assert any("makes no pictures of examples, since the data is" in message for message in said(caplog))
    assert steps(memory, "weights/weight") == [1]


def test_a_batch_that_does_not_fit_raises_where_it_was_given_and_is_said_where_it_was_guessed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class OwnLoss(Trainer):
        """Its examples are not what the model takes: `compute_loss` makes that of them."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return model(input_ids=inputs["input_ids"] % 256, labels=inputs["labels"]).loss

    shifted = [{**one, "input_ids": [number + 256 for number in one["input_ids"]]} for one in passages()]
    memory = vizlog.Memory()
    trained(classifier, VizLog(to=memory), kind=OwnLoss, train_dataset=shifted, eval_dataset=shifted, max_steps=2)
    assert steps(memory, "weights/classifier.weight") == [1, 2]
    assert [message for message in said(caplog) if "goes on without pictures of examples" in message]
    with pytest.raises(vizlog.batch.BatchDoesNotFit, match="could not be run on the fixed batch"):
        trained(classifier, VizLog(batch={"input_ids": torch.full((2, 4), 256)}), max_steps=2)


def test_images_are_shown_as_they_were_before_they_were_normalised(digits: tuple[Tensor, Tensor]) -> None:
    class Processor:
        image_mean, image_std = (0.5,), (0.25,)

    def vit() -> nn.Module:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **small))

    images, labels = 0.2 + 0.5 * digits[0][:64], digits[1][:64]  # stretched to black and white they would be others
    data = [{"pixel_values": (x - 0.5) / 0.25, "labels": y} for x, y in zip(images, labels, strict=True)]
    batch = shown(make=vit, train_dataset=data, eval_dataset=data, processing_class=Processor())
    expected = (images[batch.ids].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(batch.thumbnails(), expected)


def test_without_transformers_the_import_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "vizlog.callbacks.huggingface")
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'vizlog\[huggingface\]'"):
        importlib.import_module("vizlog.callbacks.huggingface")


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": "often"}, {"probes": [3]}, {"probes": [], "every": 5}, {"stop_when": "never"}]
)
def test_what_is_wrong_raises_when_it_is_built(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        VizLog(**options)
