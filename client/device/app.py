"""A device's Flower app: it carries bytes between Flower and the device's folder, and decides nothing.

The SuperNode names the folder (``--node-config 'device="FOLDER"'``); no message can. Whatever goes wrong, one word of
a fixed list leaves: an error's text could hold what is private.
"""

from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrecall.client.device.folder import DeviceFolder
from fedrecall.protocol.errors import BudgetExhausted, PlanError

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a round: the ask's bytes in, the update's bytes out, or one word why not."""
    try:
        data = _folder(context).answer(message.content.array_records["ask"]["packed"].data)
    except Exception as error:
        return _refusal(error, message)
    packed = Array("uint8", (len(data),), "safetensors", data)
    return Message(RecordDict({"update": ArrayRecord({"packed": packed})}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which device this node is: its public number, and the task that it agreed to."""
    try:
        folder = _folder(context)
        record = ConfigRecord({"number": folder.number, "task": folder.task.digest()})
    except Exception as error:
        return _refusal(error, message)
    return Message(RecordDict({"device": record}), reply_to=message)


def _folder(context: Context) -> DeviceFolder:
    return DeviceFolder(Path(str(context.node_config["device"])))


def reason_of(error: Exception) -> str:
    """Return the one word that leaves when a device refuses."""
    words = ((BudgetExhausted, "budget"), (PlanError, "plan"))
    return next((word for kind, word in words if isinstance(error, kind)), "failed")


def _refusal(error: Exception, message: Message) -> Message:
    return Message(RecordDict({"refused": ConfigRecord({"reason": reason_of(error)})}), reply_to=message)
