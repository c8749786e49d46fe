"""`python -m twostage.cli`: what `accelerate launch -m twostage.cli train ...` needs."""

from .main import app

app(prog_name="twostage")
