"""Browsers that are logged in to sprites' URLs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "log_ins",
        sa.Column("hash", sa.String, primary_key=True),
        sa.Column("sprite_id", sa.String, nullable=False),
        sa.Column("token_id", sa.String, sa.ForeignKey("tokens.id"), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("log_ins_of_token", "log_ins", ["token_id", "created_at"])
