"""The route of the caller's organization, which older clients ask for after log-in."""

from __future__ import annotations

from fastapi import FastAPI, Request

from ballpoint.api.bodies import Organization, OrganizationBody
from ballpoint.api.parameters import caller_of, errors
from ballpoint.api.service import ListingService
from ballpoint.api.sprites import MAX_PAGE


def add_organization_routes(app: FastAPI, listing: ListingService) -> None:
    """Give `app` the route `/v1/organization`."""

    @app.get("/v1/organization", tags=["Organization"], responses=errors(503))
    async def get_organization(request: Request) -> OrganizationBody:
        """The organization that the token belongs to, and its sprites that run now."""
        caller = caller_of(request)
        active: list[str] = []
        after = None
        while True:
            page = await listing.list(caller, prefix="", limit=MAX_PAGE, after=after)
            active += [sprite.name for sprite in page.sprites if sprite.status == "running"]
            if (after := page.next) is None:
                break
        return OrganizationBody(
            organization=Organization(
                slug=caller.org,
                sprites_enabled=True,
                active_sprites=active,
                max_sprites=None,
                active_sprite_limit=page.counts.running_limit,
            )
        )
