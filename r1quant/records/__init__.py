"""Records: what was measured, as types. It knows JSON, and neither files nor how anything is measured.

fields    how a record type is written: a frozen dataclass, and what `stored` says beside a field
reading   out of parsed JSON, which is not trusted      writing   to JSON, and numbers by dotted path
record    what every kind of record has                 table     read_record, by the schema

A new kind is a frozen dataclass that mixes in `Record`, names its SCHEMA, and is one of `table.KINDS`.
"""
