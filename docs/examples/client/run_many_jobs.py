"""Run three jobs at the same time on one event loop."""

# START client
import asyncio
import os

from airflow_provider_rayjobs.jobs import AsyncRayJobsClient


async def run(client: AsyncRayJobsClient, number: int) -> str:
    job = await client.submit_job(["python", "-c", f"print({number})"])
    details = await client.follow_job(job)
    return f"{number}: {details.status}"


async def main() -> None:
    async with AsyncRayJobsClient(os.environ["RAY_API_SERVER_ADDRESS"]) as client:
        for line in await asyncio.gather(*(run(client, number) for number in range(3))):
            print(line)


asyncio.run(main())
# END client
