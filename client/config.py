"""What a device does in a round, and for itself."""

from pydantic import BaseModel, ConfigDict, Field


class LocalConfig(BaseModel):
    """A device's work in one round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    negatives: int = Field(512, ge=1, description="public negatives a round, shared by all devices")
    steps: int = Field(1, ge=1, description="local steps on the round's sample; more than one sends a weight change")
    learning_rate: float = Field(0.1, gt=0, description="of local steps, when there is more than one")
    tower_learning_rate: float = Field(
        0.0, ge=0, description="of the private user tower inside rounds; unit 'interaction' requires 0"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the numbers that go into the transformer's blocks that a round hides"
    )
    blocks: int = Field(8, ge=1, description="blocks a history is cut into; unit 'interaction' alone")


class PersonalConfig(BaseModel):
    """A device's work after the last release, on its private user tower. Nothing of it leaves the device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(10, ge=0, description="gradient steps on the user tower; 0 leaves it the identity")
    learning_rate: float = Field(0.01, gt=0, description="of Adam, with decoupled weight decay")
    weight_decay: float = Field(0.1, ge=0, description="pull of the tower's weights towards zero")
    negatives: int = Field(512, ge=1, description="negatives a step")
