"""Scenes of moving objects with captions: a world with many right answers to one caption."""

from vidgen.data.synthetic.scenes.caption import caption
from vidgen.data.synthetic.scenes.draw import draw_scene, held_out
from vidgen.data.synthetic.scenes.place import Layout, place
from vidgen.data.synthetic.scenes.render import render
from vidgen.data.synthetic.scenes.world import Body, Scene

__all__ = ["Body", "Layout", "Scene", "caption", "draw_scene", "held_out", "place", "render"]
