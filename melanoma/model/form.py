"""In which forms a bundle's model can be asked for, see `melanoma.model.bundle.Bundle.in_form`."""

from typing import Literal

NetworkForm = Literal["auto", "tensorflow", "compiled"]
