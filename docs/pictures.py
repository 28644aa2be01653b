"""Draw the README's pictures from a finished sweep: python docs/pictures.py multirun/<sweep> [step]

Takes the gradient_flow image nearest to the step (60 unless given) out of each run's event file.
"""

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main(sweep: Path, step: int) -> None:
    first_seeds = {path.parent.parent: path.parent for path in sorted(sweep.rglob("result.json"), reverse=True)}
    for run in first_seeds.values():
        images = EventAccumulator(str(run), size_guidance={"images": 0}).Reload().Images("gradient_flow")
        image = min(images, key=lambda image: abs(image.step - step))
        warmup = run.parent.name.removeprefix("warmup_frac=")
        target = Path(__file__).with_name(f"gradient_flow_warmup_{warmup}.png")
        target.write_bytes(image.encoded_image_string)
        print(f"{target}: step {image.step} of {run}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
