"""Labels photos with an exported model: python label_photo.py PHOTO... It needs numpy, pillow and onnxruntime only."""

import io
import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps

FOLDER = Path(__file__).resolve().parent
MODEL = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
SESSION = onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])
if SESSION.get_modelmeta().custom_metadata_map["fingerprint"] != MODEL["fingerprint"]:
    sys.exit("error: model.json describes another model than model.onnx; export the model again")


def read(path: str) -> np.ndarray:
    """Returns uint8 (1, height, width, 3): the upright photo on white, scaled until it fits."""
    photo = ImageOps.exif_transpose(Image.open(path))
    if profile := photo.info.get("icc_profile"):
        photo = photo if photo.mode in ("L", "CMYK") else photo.convert("RGBA")
        modes = photo.mode, "RGBA" if photo.mode == "RGBA" else "RGB"
        how = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        with suppress(OSError, ImageCms.PyCMSError):  # a profile that is damaged, or of another colour space
            source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            photo = ImageCms.buildTransform(source, srgb, *modes, *how).apply(photo)
    photo = photo.convert("RGBA")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    photo.thumbnail((MODEL["max_side"], MODEL["max_side"]), Image.Resampling.LANCZOS, reducing_gap=2.0)
    height, width = MODEL["height"], MODEL["width"]
    scale = min(height / photo.height, width / photo.width)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(photo.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)[None]


def label(path: str, point: str = "accuracy") -> dict[str, list[tuple[str, float, bool]]]:
    """Returns attribute -> (class, probability, whether it is accepted) of each label; `point` may be "macro_f1"."""
    names = [output.name for output in SESSION.get_outputs()]
    found = {name: value[0] for name, value in zip(names, SESSION.run(names, {"photos": read(path)}), strict=True)}
    heads, tags, result = MODEL["attributes"], MODEL["tags"], {}
    shares = {name: found[f"probabilities/{name}"] for name in (*heads, *tags)}
    scores = {name: np.log(np.maximum(shares[name], 1e-30)) + head["bonus"][point] for name, head in heads.items()}
    labels = {name: int(score.argmax()) for name, score in scores.items()}
    for group in MODEL["joint"]:  # classes that may be predicted together
        rows = np.array(group["combinations"])
        total = sum(scores[name][rows[:, place]] for place, name in enumerate(group["attributes"]))
        labels |= dict(zip(group["attributes"], rows[total.argmax()].tolist(), strict=True))
    for name, rule in MODEL["applicability"].items():  # products to which an attribute always applies
        if labels[name] == rule["class"] and labels[rule["finer"]] in rule["never"]:
            labels[name] = int(np.where(np.arange(len(scores[name])) == rule["class"], -np.inf, scores[name]).argmax())
    for name, number in labels.items():
        share, thresholds = float(shares[name][number]), heads[name]["thresholds"]
        sure = thresholds is None or (thresholds[point] is not None and share >= thresholds[point])
        result[name] = [(heads[name]["classes"][number], share, sure)]
    for name, tag in tags.items():  # attributes with several values
        order = [number for number in np.argsort(-shares[name]) if shares[name][number] >= tag["thresholds"][number]]
        result[name] = [(tag["classes"][number], float(shares[name][number]), True) for number in order]
    return result


if __name__ == "__main__":
    for path in sys.argv[1:]:
        texts = {
            name: ", ".join(f"{text} {share:.0%}{'' if sure else '?'}" for text, share, sure in found) or "-"
            for name, found in label(path).items()
        }
        print(path, *(f"{name}={text}" for name, text in texts.items()))
