"""What reads a request into its types: strict, and quick about what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma

from payments_app.api.sentences import use_our_words
from payments_app.kernel.errors import FieldsInvalid


class RequestSchema(ma.Schema):
    """Fields that a body or a query may have. A `make` turns them into what the view wants.

    It knows no other hooks of marshmallow's than a field's own.
    """

    class Meta:
        """A field that we don't know is an error, not ignored: it may be a misspelt one."""

        unknown = ma.RAISE

    def __init__(self) -> None:
        """Say errors in our words, and find out what never changes."""
        super().__init__()
        use_our_words(self)
        fields = self.load_fields.items()
        self._required = {name for name, field in fields if field.required}
        self._absent = {
            name: field.load_default
            for name, field in fields
            if field.load_default is not ma.missing
        }

    def read(self, given: Mapping[str, Any]) -> Any:
        """What was asked for. Raises FieldsInvalid.

        Each field reads what was given of it. What is wrong then goes marshmallow's own way, which
        finds all faults and not only the first, and takes twice as long for what is right.
        """
        values = dict(self._absent)
        try:
            for name, value in given.items():
                values[name] = self.load_fields[name].deserialize(value, name, given)
            if self._required <= values.keys():
                return self.make(values)
        except (KeyError, ma.ValidationError):
            pass
        try:
            return self.load(given)
        except ma.ValidationError as error:
            raise FieldsInvalid(dict(error.messages_dict)) from None

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> Any:
        """As it is."""
        return data
