"""The run function: the only assembler. `python -m bertmon.run` and the console script `bertmon` start here."""

import dataclasses
import logging
import random
import signal
import sys
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from bertmon import batches, config, data, launch, model, optimizer, step, tokens, train
from bertmon.config import RunConfig
from bertmon.monitor.watch import Watch, thinned
from bertmon.monitor.writer import RunWriter
from bertmon.record import recorded

log = logging.getLogger(__name__)

config.register()
launch.register()


def run(settings: RunConfig, folder: Path, name: str) -> float:
    """Train and watch one model; everything it leaves lies in `folder`. Returns the last test accuracy, in [0, 1]."""
    with recorded(folder) as result:
        device = step.pick_device(settings.device)
        cache = Path(settings.cache).expanduser()
        seed_everything(settings.seed)

        corpus = data.load(settings.data, cache)
        vocabulary = tokens.load_vocabulary(settings.model, corpus.train.texts, cache)
        result |= {"experiment": settings.experiment, "device": str(device), "seed": settings.seed}
        result["data"] = {
            "fingerprint": corpus.fingerprint(),
            "train_texts": len(corpus.train),
            "test_texts": len(corpus.test),
            "label_names": list(corpus.label_names),
            "majority": corpus.majority(),
        }

        classifier = model.build(
            settings.model,
            label_names=corpus.label_names,
            vocab_size=vocabulary.size,
            pad_id=vocabulary.pad_id,
            max_length=settings.data.max_length,
        ).to(device)
        trained = sum(parameter.numel() for parameter in classifier.parameters())
        result["parameters"] = trained

        def batched(split: data.Split, batch_size: int) -> batches.Batches:
            return batches.Batches(
                tokens.tokenize(vocabulary, split.texts, settings.data.max_length, cache),
                split.labels,
                batch_size=batch_size,
                lengths=batches.pad_lengths(settings.data.max_length, settings.data.pad_lengths),
                pad_id=vocabulary.pad_id,
                device=device,
            )

        training = batched(corpus.train, settings.train.batch_size)
        testing = batched(corpus.test, settings.train.eval_batch_size)
        log.info(
            f"{name}: {len(corpus.train)} texts to train on, {len(corpus.test)} to test on, "
            f"{trained / 1e6:.1f} M parameters on {device}, {settings.train.epochs * len(training)} steps"
        )

        with RunWriter(folder, draw=settings.monitor.figures) as writer:
            writer.text("config", OmegaConf.to_yaml(OmegaConf.structured(settings)))
            outcome = train.fit(
                classifier,
                optimizer.build(settings.optimizer, classifier.parameters()),
                training,
                testing,
                settings,
                watch=_watch(settings, classifier, writer),
                record=writer.scalars,
                name=name,
            )
            final = outcome.evaluations[-1]
            best = max(outcome.evaluations, key=lambda evaluation: evaluation.accuracy)
            writer.hparams(_flat(settings), {"accuracy/test": final.accuracy, "loss/test": final.loss})

        result["status"] = outcome.status
        result["steps"] = outcome.steps
        result["metrics"] = {"final": dataclasses.asdict(final), "best": dataclasses.asdict(best)}
        result["evaluations"] = [dataclasses.asdict(evaluation) for evaluation in outcome.evaluations]
        result["timings"] = {"train_seconds": outcome.train_seconds, "eval_seconds": outcome.eval_seconds}
        log.info(
            f"{name}: {outcome.status}, accuracy/test {final.accuracy:.1%} "
            f"(the most frequent class alone: {corpus.majority():.1%}), {outcome.train_seconds:.0f} s of training"
        )
        return final.accuracy


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's global random states, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _watch(settings: RunConfig, classifier: torch.nn.Module, writer: RunWriter) -> Watch | None:
    if not settings.monitor.enabled:
        return None
    layers = model.layers(classifier, biases=settings.monitor.biases)
    kept = thinned(list(layers), settings.monitor.skip_prob)
    return Watch({label: layers[label] for label in kept}, every=settings.monitor.every, sink=writer)


def _flat(settings: RunConfig) -> dict[str, object]:
    """Dotted key -> value of every setting, enums by their names."""
    flat: dict[str, object] = {}

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    add("", OmegaConf.to_container(OmegaConf.structured(settings), enum_to_str=True))
    return flat


@hydra.main(version_base="1.3", config_path="pkg://bertmon.conf", config_name="config")
def _task(composed: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    settings = config.from_hydra(composed)
    try:
        return run(settings, folder, name=str(HydraConfig.get().sweep.subdir))
    except config.InputError:
        raise
    except Exception as error:  # its traceback is on the console and in run.log already
        raise CompactHydraException(f"{folder} failed: {error}") from None


def main() -> None:
    """The command line."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    flags = ("-m", "--multirun")  # Hydra's parser takes no overrides behind a flag that stands between overrides
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in flags)
    try:
        _task()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
