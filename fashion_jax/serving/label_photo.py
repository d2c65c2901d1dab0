"""Labels photos with an exported model: python label_photo.py PHOTO... It needs numpy, pillow and onnxruntime only."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
MODEL = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
SESSION = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])


def read(path: str) -> np.ndarray:
    """Returns uint8 (1, height, width, 3): the upright photo on white, scaled until it fits."""
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    photo.thumbnail((MODEL["max_side"], MODEL["max_side"]), Image.Resampling.LANCZOS, reducing_gap=2.0)
    height, width = MODEL["height"], MODEL["width"]
    scale = min(height / photo.height, width / photo.width)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(photo.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)[None]


def label(path: str, point: str = "accuracy") -> dict[str, tuple[str, float, bool]]:
    """Returns attribute -> (class, probability, whether it is accepted). `point` is "accuracy" or "macro_f1"."""
    names = [output.name for output in SESSION.get_outputs()]
    found = {name: value[0] for name, value in zip(names, SESSION.run(names, {"photos": read(path)}), strict=True)}
    heads = MODEL["attributes"]
    shares = {name: found[f"probabilities/{name}"] for name in heads}
    scores = {name: np.log(np.maximum(shares[name], 1e-30)) + head["bonus"][point] for name, head in heads.items()}
    labels = {name: int(score.argmax()) for name, score in scores.items()}
    for group in MODEL["joint"]:  # classes that may be predicted together
        rows = np.array(group["combinations"])
        total = sum(scores[name][rows[:, place]] for place, name in enumerate(group["attributes"]))
        labels |= dict(zip(group["attributes"], rows[total.argmax()].tolist(), strict=True))
    for name, rule in MODEL["applicability"].items():  # products to which an attribute always applies
        if labels[name] == rule["class"] and labels[rule["finer"]] in rule["never"]:
            labels[name] = int(np.where(np.arange(len(scores[name])) == rule["class"], -np.inf, scores[name]).argmax())
    result = {}
    for name, number in labels.items():
        least, share = heads[name]["thresholds"][point], float(shares[name][number])
        result[name] = (heads[name]["classes"][number], share, least is not None and share >= least)
    return result


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(path, *(f"{name}={text} {p:.0%}{'' if sure else '?'}" for name, (text, p, sure) in label(path).items()))
