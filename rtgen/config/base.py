"""What every config section has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen table of a config file. Unknown keys are refused: a misspelt setting must not be ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
