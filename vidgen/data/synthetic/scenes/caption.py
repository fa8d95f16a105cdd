"""A scene in words, in full or with some of them left out."""

import numpy as np

from vidgen.data.synthetic.scenes.world import Body, Scene

COUNTS = ("one object", "two objects", "three objects")
MOST_WORDS = 40  # in the longest caption: three objects with everything said


def caption(scene: Scene, *, moving: bool = True, rng: np.random.Generator | None = None) -> str:
    """All of it; with `rng` some words are left open. An image's says nothing of motion."""

    def said(chance: float = 0.5) -> bool:
        return rng is None or rng.random() < chance

    phrases = []
    for number, body in enumerate(scene.bodies):
        look = [body.size if said() else "", body.texture if said() else "", body.colour]
        words = ["a", *look, body.shape]
        if moving:
            if scene.relation and number == 1:
                words.append("that")
            words += _motion(body, said())
        phrases.append(" ".join(word for word in words if word))
    joint = f" {scene.relation} " if scene.relation and moving else ", "
    text = joint.join(phrases)
    if said():
        text = f"{COUNTS[len(phrases) - 1]}: {text}"
    if moving and said():
        text += f"; the camera {f'pans {scene.camera}' if scene.camera else 'stays still'}"
    return text


def _motion(body: Body, speed: bool) -> list[str]:
    if body.motion == "stays":
        return ["stays", "in", "place"]
    return [body.motion, str(body.heading), str(body.speed) if speed else ""]
