"""Calls to a model are found in source that is only read, and so is what waits for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canwait.audit.code import CodeFindings, find_calls, reasons_of
from canwait.audit.code.tree import MAX_BYTES
from canwait.audit.findings import CodeSite, Needs, Proof
from canwait.audit.joining import join, possible

Find = Callable[..., CodeFindings]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Finds the calls of a file `app.py` of this text, or of several files by name."""

    def found(text: str = "", files: Mapping[str, str | bytes] | None = None) -> CodeFindings:
        for name, content in (files or {"app.py": text}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return find_calls(tmp_path)

    return found


def only(findings: CodeFindings) -> CodeSite:
    assert findings.unreadable == ()
    (site,) = findings.sites
    return site


# -------------------------------------------------------------------------------------------------------- libraries

LIBRARIES = {
    "openai": (
        "from openai import OpenAI\nclient = OpenAI()\nclient.chat.completions.create(model='m', messages=[])",
        "import openai\nopenai.chat.completions.create(model='m', messages=[])",
        "import openai as o\no.OpenAI(api_key='k').responses.create(model='m', input='x')",
        "from openai import AzureOpenAI as A\nA().beta.chat.completions.parse(model='m', messages=[])",
        "from openai import AsyncOpenAI\nasync def f():\n await AsyncOpenAI().embeddings.create(model='m', input=[])",
        "from openai import OpenAI\nOpenAI().chat.completions.with_raw_response.create(model='m', messages=[])",
        "from openai import OpenAI\nOpenAI().with_options(timeout=9).responses.parse(model='m', input='x')",
        "from openai import OpenAI\nwith OpenAI() as c:\n c.responses.create(model='m', input='x')",
        "import openai\nopenai.ChatCompletion.create(model='m', messages=[])",
        "from langfuse.openai import openai\nopenai.responses.create(model='m', input='x')",
        "from langsmith.wrappers import wrap_openai\nimport openai\nc = wrap_openai(openai.OpenAI())\n"
        "c.responses.create(model='m', input='x')",
        "def f(client):\n return client.chat.completions.create(model='m', messages=[])",
        "def f(llm):\n return llm['a'].chat.completions.create(model='m', messages=[])",
        "from openai import OpenAI\ndef f(c: 'OpenAI | None' = None):\n return c.responses.create(model='m', input=1)",
        "from typing import Optional\nimport openai\ndef f(c: Optional[openai.Client]):\n"
        " c.chat.completions.create(model='m', messages=[])",
        "from openai import OpenAI\nclass A:\n def __init__(self):\n  self.c = OpenAI()\n"
        " def f(self):\n  return self.c.responses.create(model='m', input='x')",
        "from openai import OpenAI\nclass A:\n c: OpenAI\n def f(self):\n  self.c.responses.create(model='m', input='')",
        "from openai import OpenAI\nfrom functools import cached_property\nclass A:\n @cached_property\n"
        " def c(self):\n  return OpenAI()\n def f(self):\n  self.c.responses.create(model='m', input='')",
        "from openai import OpenAI\nclass Mine(OpenAI):\n def f(self):\n  self.responses.create(model='m', input='')",
        "def get():\n from openai import OpenAI\n return OpenAI()\nget().responses.create(model='m', input='x')",
        "from openai import OpenAI\nask = OpenAI().responses.create\nask(model='m', input='x')",
        "import asyncio\nfrom openai import OpenAI\nc = OpenAI()\nasync def f():\n"
        " await asyncio.to_thread(c.responses.create, model='m', input='x')",
        "from openai import OpenAI\nclient = None\ndef get():\n global client\n client = client or OpenAI()\n"
        " return client\nget().responses.create(model='m', input='x')",
    ),
    "anthropic": (
        "import anthropic\nanthropic.Anthropic().messages.create(model='m', max_tokens=9, messages=[])",
        "from anthropic import AsyncAnthropic\nasync def f():\n"
        " async with AsyncAnthropic().messages.stream(model='m', max_tokens=9, messages=[]) as s:\n  pass",
        "from anthropic import AnthropicBedrock\nAnthropicBedrock().messages.create(model='m', max_tokens=9)",
        "import anthropic\nc = anthropic.Anthropic()\nc.beta.messages.create(model='m', max_tokens=9)",
        "def f(c):\n c.messages.create(model='m', max_tokens=9, messages=[])",
        "def f(anthropic_client, given):\n anthropic_client.messages.create(**given)",
    ),
    "google-genai": (
        "from google import genai\ngenai.Client().models.generate_content(model='m', contents='x')",
        "from google import genai\nc = genai.Client()\nasync def f():\n"
        " await c.aio.models.generate_content_stream(model='m', contents='x')",
        "from google import genai\ngenai.Client().models.embed_content(model='m', contents='x')",
        "import google.generativeai as genai\ngenai.GenerativeModel('m1').generate_content('x')",
        "from google import genai\ngenai.Client().chats.create(model='m').send_message('x')",
        "from vertexai.generative_models import GenerativeModel\nGenerativeModel('m1').generate_content('x')",
    ),
    "mistral": (
        "from mistralai import Mistral\nMistral(api_key='k').chat.complete(model='m', messages=[])",
        "from mistralai import Mistral\nasync def f():\n await Mistral().chat.stream_async(model='m', messages=[])",
        "from mistralai import Mistral\nwith Mistral() as m:\n m.embeddings.create(model='m', inputs=[])",
        "from mistralai.client import MistralClient\nMistralClient().chat(model='m', messages=[])",
    ),
    "litellm": (
        "from litellm import completion\ncompletion(model='m', messages=[])",
        "from litellm import acompletion as ask\nasync def f():\n await ask(model='m', messages=[])",
        "import litellm\nlitellm.embedding(model='m', input=[])",
        "import litellm\nlitellm.batch_completion(model='m', messages=[])",
        "from litellm import Router\nr = Router(model_list=[])\nr.completion(model='m', messages=[])",
    ),
    "langchain": (
        "from langchain_openai import ChatOpenAI\nllm = ChatOpenAI(model='m')\nllm.invoke('x')",
        "from langchain_anthropic import ChatAnthropic\nChatAnthropic(model='m').batch(['x'])",
        "from langchain.chat_models import init_chat_model\ninit_chat_model('m1').stream('x')",
        "from langchain_core.prompts import ChatPromptTemplate as P\nfrom langchain_openai import ChatOpenAI\n"
        "from langchain_core.output_parsers import StrOutputParser\n"
        "chain = P.from_messages([]) | ChatOpenAI(model='m') | StrOutputParser()\nchain.invoke({})",
        "from langchain_core.prompts import PromptTemplate\ndef f(llm):\n"
        " return (PromptTemplate.from_template('x') | llm).invoke({})",
        "from langchain_openai import ChatOpenAI\nasync def f():\n"
        " await ChatOpenAI(model='m').with_structured_output(dict).ainvoke('x')",
        "from langchain_core.language_models import BaseChatModel\ndef f(m: BaseChatModel):\n m.invoke('x')",
        "from langchain_openai import OpenAIEmbeddings\nOpenAIEmbeddings().embed_documents([])",
        "from langgraph.prebuilt import create_react_agent\ncreate_react_agent('m', []).invoke({})",
    ),
    "pydantic-ai": (
        "from pydantic_ai import Agent\nagent = Agent('openai:m')\nagent.run_sync('x')",
        "from pydantic_ai import Agent\nagent = Agent[int, str]('openai:m')\nasync def f():\n await agent.run('x')",
        "import pydantic_ai\nasync def f():\n async with pydantic_ai.Agent('m1').run_stream('x') as r:\n  pass",
    ),
    "instructor": (
        "import instructor, openai\nc = instructor.from_openai(openai.OpenAI())\n"
        "c.chat.completions.create(model='m', response_model=int, messages=[])",
        "import instructor\nc = instructor.from_provider('openai/m')\nc.create(response_model=int, messages=[])",
        "import instructor\nfrom openai import OpenAI\nc = instructor.patch(OpenAI())\n"
        "c.chat.completions.create_partial(model='m', response_model=int, messages=[])",
        "def f(c):\n c.chat.completions.create(model='m', response_model=int, messages=[])",
    ),
}


@pytest.mark.parametrize(("library", "text"), [(lib, t) for lib, texts in LIBRARIES.items() for t in texts])
def test_each_library_is_found_however_its_client_was_come_by(find: Find, library: str, text: str) -> None:
    """Aliases, annotations, attributes, properties, `with`, returns and wrappers lead to one call of the library."""
    assert only(find(text)).library == library


@pytest.mark.parametrize(
    "text",
    [
        "from app.models import User\nUser.objects.create(name='openai')",
        "def f(thread, text):\n thread.messages.create(text=text, model='openai')",
        "from twilio.rest import Client\nc = Client()\nc.messages.create(body='openai', from_='1', to='2')",
        "def f(survey):\n survey.responses.create(answer=1)  # openai",
        "import stripe  # openai\nstripe.Customer.create(email='x')\nstripe.PaymentIntent.create(amount=1)",
        "import boto3  # openai\nboto3.client('batch').submit_job(jobName='x')\nboto3.resource('ec2').create(model='m')",
        "from sqlalchemy import create_engine  # openai\ne = create_engine('x')\nwith e.begin() as c:\n"
        " c.stream('x')\nTable.metadata.create(e)",
        "import subprocess  # openai\nsubprocess.run(['x'])\nimport asyncio\nasyncio.run(f())",
        "from langchain_core.prompts import ChatPromptTemplate\nChatPromptTemplate.from_messages([]).invoke({})",
        "from langchain_core.runnables import RunnableLambda\nRunnableLambda(len).invoke([])",
        "from unittest.mock import Mock\nc = Mock()\nc.chat.completions.create.assert_called_once()",
        "from openai import OpenAI\nOpenAI().models.list()\nOpenAI().files.create(file=1, purpose='batch')",
        "from openai import OpenAI\nOpenAI().images.generate(model='m', prompt='x')",
        "from anthropic import Anthropic\nAnthropic().messages.count_tokens(model='m', messages=[])",
        "import openai\nclass Mine:\n def create(self, model, messages): pass\nMine().create(model='m', messages=[])",
        "def completion(model, messages): pass\ncompletion(model='litellm', messages=[])",
        "'''client.chat.completions.create(model=m)'''\n# client.chat.completions.create(model=m)",
        "from invoke import task\nimport openai\n@task\ndef run(c):\n c.run('x')\n",
    ],
)
def test_what_only_looks_alike_is_not_found(find: Find, text: str) -> None:
    """`create`, `run`, `stream` and `invoke` of other libraries are no calls to a model."""
    assert find(text).sites == ()


def test_a_client_of_another_file_is_followed(find: Find) -> None:
    """Imports, relative ones, packages that hand names on, and stars lead to the client another file makes."""
    sites = find(
        files={
            "src/shop/__init__.py": "from .clients import *\nfrom .make import get",
            "src/shop/clients.py": "from langchain_openai import ChatOpenAI\nllm = ChatOpenAI(model='m')",
            "src/shop/make.py": "from . import clients\ndef get():\n return clients.llm",
            "src/shop/service.py": "from shop import llm\nllm.invoke('1')",
            "src/shop/deep/er.py": "from ..make import get\nget().invoke('2')",
            "src/shop/typed.py": "from fastapi import Depends\nfrom shop.make import get\n"
            "def f(m=Depends(get)):\n m.invoke('3')",
            "other.py": "import shop.clients\nshop.clients.llm.invoke('4')",
        }
    ).sites
    assert [(s.file, s.library, s.model) for s in sites] == [
        ("other.py", "langchain", "m"),
        ("src/shop/deep/er.py", "langchain", "m"),
        ("src/shop/service.py", "langchain", "m"),
        ("src/shop/typed.py", "langchain", "m"),
    ]


def test_a_file_named_like_a_library_is_not_taken_for_it(find: Find) -> None:
    """`import openai` beside a file `openai.py` is the library: that file is where clients are made."""
    files = {
        "llm/openai.py": "from openai import OpenAI\nOpenAI().responses.create(model='m', input='x')",
        "llm/use.py": "import openai\nopenai.OpenAI().responses.create(model='m', input='x')",
    }
    assert [s.file for s in find(files=files).sites] == ["llm/openai.py", "llm/use.py"]


@pytest.mark.parametrize(
    ("text", "batch"),
    [
        ("from openai import OpenAI\nOpenAI().batches.create(input_file_id='f', endpoint='e')", True),
        ("import anthropic\nanthropic.Anthropic().messages.batches.create(requests=[])", True),
        ("from google import genai\ngenai.Client().batches.create(model='m', src='f')", True),
        ("from mistralai import Mistral\nMistral().batch.jobs.create(model='m', input_files=[])", True),
        ("from openai import OpenAI\nOpenAI().responses.create(model='m', input='f')", False),
    ],
)
def test_batch_apis_are_told_apart(find: Find, text: str, batch: bool) -> None:
    """A call that uses a batch API already is marked, and speaks for batch."""
    site = only(find(text))
    assert (site.is_batch, reasons_of(site)[0].says == Needs.BATCH) == (batch, batch)


# ----------------------------------------------------------------------------------------------- what a call is told

CALL = "from openai import OpenAI\nclient = OpenAI()\n"


@pytest.mark.parametrize(
    ("text", "stream", "model", "cap"),
    [
        (CALL + "client.responses.create(model='m', input='x')", False, "m", None),
        (CALL + "client.responses.create(model='m', input='x', stream=True, max_output_tokens=7)", True, "m", 7),
        (CALL + "S = False\nclient.responses.create(model=x(), input='x', stream=S)", False, None, None),
        (CALL + "client.responses.create(model='m', input='x', stream=wanted())", None, "m", None),
        (CALL + "client.responses.create(input='x', **given())", None, None, None),
        (CALL + "M = 'm'\nG = {'model': M, 'max_tokens': 5}\nclient.chat.completions.create(**G)", None, "m", 5),
        (CALL + "client.chat.completions.stream(model='m', messages=[], max_tokens=-1)", True, "m", None),
        (CALL + "client.chat.completions.create(model='m', messages=[], max_tokens=True)", False, "m", None),
        ("from langchain_openai import ChatOpenAI as C\nl = C(model='m', max_tokens=9)\nl.stream('x')", True, "m", 9),
        ("from pydantic_ai import Agent\nAgent('openai:m').run_sync('x')", False, "openai:m", None),
        (
            "from google import genai\nfrom google.genai import types\ngenai.Client().models.generate_content(model='m',"
            " contents='x', config=types.GenerateContentConfig(max_output_tokens=3))",
            False,
            "m",
            3,
        ),
        (CALL + "m = 'a'\nif x: m = 'b'\nclient.responses.create(model=m, input='x')", False, None, None),
        (CALL + "m = 'a'\nfor m in ms: client.responses.create(model=m, input='x')", False, None, None),
        (CALL + "def f(m='a'):\n client.responses.create(model=m, input='x')", False, None, None),
        (CALL + "a, b = 'm', 7\nclient.responses.create(model=a, max_output_tokens=b, input='x')", False, "m", 7),
        ("import os, litellm\nlitellm.completion(os.environ['M'], [])", False, None, None),
        ("import litellm\nlitellm.completion('gpt/m', [])", False, "gpt/m", None),
    ],
)
def test_literals_are_read_and_nothing_is_guessed(
    find: Find, text: str, stream: bool | None, model: str | None, cap: int | None
) -> None:
    """Model, cap and stream are what the text says, through constants and displays; otherwise they are missing."""
    site = only(find(text))
    assert (site.stream, site.model, site.max_output_tokens) == (stream, model, cap)


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("ASK", False),
        ("for row in rows:\n ASK", True),
        ("while rows:\n ASK", True),
        ("[ASK for row in rows]", True),
        ("for row in ASK:\n pass", False),
        ("for attempt in range(3):\n ASK", False),
        ("for row in rows:\n for attempt in range(3):\n  ASK", True),
        ("def f(row):\n return ASK\nexecutor.map(f, rows)", True),
        ("def f(row):\n return ASK\nfor row in rows:\n f(row)", True),
        ("def f(row):\n return ASK\nf(1)", False),
        ("asyncio.gather(*[ASK for row in rows])", True),
        ("frame.text.map(lambda t: ASK)", True),
    ],
)
def test_loops_are_seen_and_retries_are_none(find: Find, text: str, looped: bool) -> None:
    """A call once for each of several things is in a loop; one that is tried again is not."""
    assert only(find(CALL + text.replace("ASK", "client.responses.create(model='m', input='x')"))).in_loop is looped


@pytest.mark.parametrize(
    ("text", "is_async"),
    [
        ("from openai import AsyncOpenAI\nc = AsyncOpenAI()\nx = c.responses.create(model='m', input='')", True),
        ("async def f(c):\n await c.chat.completions.create(model='m', messages=[])", True),
        ("def f(c):\n c.chat.completions.create(model='m', messages=[])", False),
        ("from litellm import acompletion\nx = acompletion(model='m', messages=[])", True),
        ("from litellm import completion\nx = completion(model='m', messages=[])", False),
        ("from langchain_openai import ChatOpenAI\nx = ChatOpenAI().ainvoke('x')", True),
    ],
)
def test_asynchronous_calls_are_told_apart(find: Find, text: str, is_async: bool) -> None:
    """A call is asynchronous by its client, by its name or because it is awaited."""
    assert only(find(text)).is_async is is_async


def test_a_site_says_where_it_stands(find: Find) -> None:
    """File, line and column from 1, the call as written, and the qualified function."""
    site = only(find(CALL + "class A:\n    def f(self):\n        return client.responses.create(model='m', input='x')"))
    place = (site.file, site.line, site.column, site.call, site.function)
    assert place == ("app.py", 5, 16, "client.responses.create", "A.f")


# -------------------------------------------------------------------------------------------------------- what waits

ASK = "client.chat.completions.create(model='m', messages=[])"
WAITS = {
    "request handler": (
        "from fastapi import FastAPI\napp = FastAPI()\n@app.post('/x')\ndef f():\n ASK",
        "from fastapi import APIRouter\nr = APIRouter()\n@r.get('/x')\nasync def f():\n await ASK",
        "from fastapi import FastAPI, WebSocket\napp = FastAPI()\n@app.websocket('/x')\nasync def f(s: WebSocket):\n ASK",
        "from flask import Flask\napp = Flask(__name__)\n@app.route('/x')\ndef f():\n ASK",
        "from core import router\n@router.post('/x')\ndef f():\n ASK",
        "from flask.views import MethodView\nclass V(MethodView):\n def get(self):\n  ASK",
        "from rest_framework.views import APIView\nclass V(APIView):\n def post(self, request):\n  return self.g()\n"
        " def g(self):\n  ASK",
        "from django.http import HttpRequest\ndef f(request: HttpRequest):\n ASK",
        "from django.urls import path\ndef f(r):\n ASK\nurlpatterns = [path('x', f)]",
        "from aiohttp import web\nasync def f(r):\n ASK\napp = web.Application()\napp.router.add_post('/x', f)",
        "from starlette.routing import Route\nasync def f(r):\n ASK\nroutes = [Route('/x', f)]",
        "import streamlit as st\nif st.button('x'):\n ASK",
        "import gradio as gr\ndef f(t):\n return ASK\ngr.Interface(fn=f, inputs='text', outputs='text').launch()",
        "import chainlit as cl\n@cl.on_message\nasync def f(m):\n await ASK",
        "from slack_bolt import App\napp = App()\n@app.event('message')\ndef f(e):\n ASK",
        "import discord\nclient2 = discord.Client()\n@client2.event\nasync def on_message(m):\n await ASK",
        "from fastapi import FastAPI\napp = FastAPI()\ndef g():\n return ASK\n@app.get('/x')\ndef f():\n return g()",
        "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/x')\ndef f():\n def inner():\n  yield ASK\n"
        " return inner()",
        "import strawberry\n@strawberry.type\nclass Q:\n @strawberry.field\n def f(self):\n  ASK",
    ),
    "agent loop": (
        "from pydantic_ai import Agent\nagent = Agent('m1', tools=[len])\n@agent.tool_plain\ndef f():\n ASK",
        "messages = []\nwhile True:\n r = client.chat.completions.create(model='m', messages=messages)\n"
        " messages.append(r)",
        "def f(messages, tools):\n for _ in range(9):\n"
        "  r = client.chat.completions.create(model='m', messages=messages, tools=tools)\n"
        "  if not r.choices[0].message.tool_calls: break",
        "def ask(messages):\n return client.chat.completions.create(model='m', messages=messages)\n"
        "def loop(messages):\n while True:\n  messages.append(ask(messages))",
        "from pydantic_ai import Agent\nagent = Agent('m1')\n@agent.tool_plain\ndef f():\n ASK",
        "from langchain_core.tools import tool\n@tool\ndef f():\n ASK",
    ),
    "DAG task": (
        "from airflow.decorators import task\n@task\ndef f():\n ASK",
        "from airflow.sdk import task\n@task(retries=3)\ndef f():\n ASK",
        "from airflow.operators.python import PythonOperator\ndef f():\n ASK\n"
        "t = PythonOperator(task_id='x', python_callable=f)",
        "from airflow.models import BaseOperator\nclass O(BaseOperator):\n def execute(self, context):\n  ASK",
        "from dagster import asset\n@asset\ndef f():\n ASK",
        "import dagster as dg\n@dg.op(retry_policy=1)\ndef f():\n g()\ndef g():\n ASK",
        "from prefect import flow, task\n@task\ndef g():\n ASK\n@flow\ndef f():\n g.submit()\n"
        "if __name__ == '__main__':\n f()",
        "import luigi\nclass T(luigi.Task):\n def run(self):\n  ASK",
        "from metaflow import FlowSpec, step\nclass F(FlowSpec):\n @step\n def start(self):\n  ASK",
    ),
    "cron": (
        "from celery import Celery\nfrom celery.schedules import crontab\napp = Celery()\n@app.task\ndef f():\n ASK\n"
        "@app.on_after_configure.connect\ndef setup(sender, **k):\n sender.add_periodic_task(crontab(hour=3), f.s())",
        "from apscheduler.schedulers.blocking import BlockingScheduler\ns = BlockingScheduler()\ndef f():\n ASK\n"
        "s.add_job(f, 'cron', hour=3)",
        "from apscheduler.schedulers.blocking import BlockingScheduler\ns = BlockingScheduler()\n"
        "@s.scheduled_job('interval', hours=1)\ndef f():\n ASK",
        "import schedule\ndef f():\n ASK\nschedule.every().day.at('03:00').do(f)",
        "from celery import Celery\napp = Celery()\n@app.task\ndef label():\n ASK\n"
        "app.conf.beat_schedule = {'x': {'task': 'app.label', 'schedule': 60}}",
        "from celery import shared_task\n@shared_task(name='x.y')\ndef label():\n ASK\n"
        "CELERY_BEAT_SCHEDULE = {'x': {'task': 'x.y', 'schedule': 60}}",
    ),
    "queue": (
        "from celery import shared_task\n@shared_task(name='x.y')\ndef label():\n ASK\ndef view(request):\n"
        " label.apply_async()\nCELERY_BEAT_SCHEDULE = {'x': {'task': 'x.y', 'schedule': 60}}",
        "from celery import Celery\napp = Celery()\n@app.task\ndef f():\n ASK",
        "from celery import shared_task\n@shared_task\ndef f():\n ASK\ndef view(request):\n f.delay()",
        "import dramatiq\n@dramatiq.actor\ndef f():\n ASK",
        "from rq import Queue\ndef f():\n ASK\nQueue().enqueue(f)",
        "from fastapi import BackgroundTasks, FastAPI\napp = FastAPI()\ndef f():\n ASK\n@app.post('/x')\n"
        "def g(tasks: BackgroundTasks):\n tasks.add_task(f)",
    ),
    "script": (
        "ASK",
        "import aiohttp\ndef f():\n return ASK\naiohttp.ClientSession().post('/x', json=f())",
        "from fastapi import FastAPI\napp = FastAPI()\ndef f():\n return ASK\napp.extra = dict(app.get('/x', f()))",
        "def main():\n ASK\nif __name__ == '__main__':\n main()",
        "import click\n@click.command()\ndef f():\n ASK",
        "import typer\napp = typer.Typer()\n@app.command()\ndef f():\n ASK",
        "import argparse\ndef f(a):\n ASK\np = argparse.ArgumentParser()\np.set_defaults(func=f)",
        "from django.core.management.base import BaseCommand\nclass Command(BaseCommand):\n"
        " def handle(self, *a, **k):\n  ASK",
        "from flask import Flask\napp = Flask(__name__)\n@app.cli.command('x')\ndef f():\n ASK",
    ),
    "unknown": (
        "def f():\n return ASK",
        "def lambda_handler(event, context):\n return ASK",
        "TABLE = {}\ndef f():\n return ASK\nTABLE['x'] = f",
        "from airflow.decorators import task\ndef g():\n return ASK\n@task\ndef f():\n g()\ndef other():\n g()",
        "class A:\n def get(self):\n  ASK",
    ),
}


@pytest.mark.parametrize(("kind", "text"), [(kind, t) for kind, texts in WAITS.items() for t in texts])
def test_what_waits_is_what_the_code_shows(find: Find, kind: str, text: str) -> None:
    """Decorators, classes, registrations, loops, files and callers tell what waits; nothing else does."""
    sites = [s for s in find(text.replace("ASK", ASK)).sites if s.library == "openai"]
    assert [s.waits for s in sites] == [kind], sites[0].why
    assert sites[0].why


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("from pydantic_ai import Agent\na = Agent('m1')\na.run_sync('x')", "script"),
        ("from pydantic_ai import Agent\na = Agent('m1', tools=[len])\na.run_sync('x')", "agent loop"),
        ("from pydantic_ai import Agent\na = Agent('m1')\n@a.tool\ndef f(): pass\na.run_sync('x')", "agent loop"),
        ("from langgraph.prebuilt import create_react_agent as c\nc('m', [len]).invoke({})", "agent loop"),
    ],
)
def test_an_agent_without_tools_is_one_request(find: Find, text: str, kind: str) -> None:
    """What may ask again by itself is an agent loop; an agent that has nothing to do but answer is not."""
    assert only(find(text)).waits == kind


def test_a_view_is_known_by_its_place(find: Find) -> None:
    """A function `(request)` of Django's views.py is a request handler."""
    assert only(find(files={"shop/views.py": f"def f(request):\n {ASK}"})).waits == "request handler"


def test_several_that_wait_are_all_named_and_the_most_urgent_counts(find: Find) -> None:
    """A function called from a handler and a DAG is the handler's, and the reason names both with their places."""
    text = (
        f"from airflow.decorators import task\nfrom fastapi import FastAPI\napp = FastAPI()\ndef g():\n return {ASK}\n"
        "@task\ndef f():\n g()\n@app.get('/x')\ndef h():\n g()"
    )
    site = only(find(text))
    assert site.waits == "request handler"
    assert site.why == (
        "called by h() at app.py:11: @app.get at app.py:9; also DAG task: called by f() at app.py:8: @task at app.py:6"
    )


def test_callers_are_followed_over_files_methods_and_overrides(find: Find) -> None:
    """A handler that gets an abstract service waits for the class that implements it, in another file."""
    site = only(
        find(
            files={
                "svc/base.py": "class Writer:\n def write(self, text): ...",
                "svc/openai_writer.py": "from openai import OpenAI\nfrom svc.base import Writer\n"
                "class Mine(Writer):\n def __init__(self):\n  self.client = OpenAI()\n"
                f" def write(self, text):\n  return self._ask(text)\n def _ask(self, text):\n  return self.{ASK}",
                "svc/make.py": "from svc.openai_writer import Mine\nfrom svc.base import Writer\n"
                "def writer() -> Writer:\n return REGISTRY['mine']",
                "svc/api.py": "from fastapi import APIRouter, Depends\nfrom svc.base import Writer\n"
                "from svc.make import writer\nrouter = APIRouter()\n"
                "@router.post('/w')\ndef post(w: Writer = Depends(writer)):\n return w.write('x')",
            }
        )
    )
    assert site.waits == "request handler"
    assert "svc/api.py:5" in site.why


def test_tests_and_notebooks_are_what_they_are(find: Find) -> None:
    """A test is a test, and a cell of a notebook says which cell and which line of it."""
    cells = [
        {"cell_type": "markdown", "source": ["# text"]},
        {"cell_type": "code", "source": ["%pip install openai\n", "!ls\n", "import openai\n", "c = openai.OpenAI()"]},
        {"cell_type": "code", "source": "if True:\n    %time 1\n\nc.responses.create(model='m', input='x')"},
        {"cell_type": "code", "source": "%%bash\nfor x in y; do"},
    ]
    sites = find(
        files={
            "n.ipynb": json.dumps({"cells": cells, "nbformat": 4}),
            "tests/test_x.py": f"def test_f(client):\n {ASK}",
            "tests/data.py": ASK,
        }
    ).sites
    assert [(s.file, s.line, s.function, s.waits) for s in sites] == [
        ("n.ipynb", 4, "cell 2", "notebook"),
        ("tests/data.py", 1, "", "test"),
        ("tests/test_x.py", 2, "test_f", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            ".github/workflows/x.yml",
            "on:\n  schedule:\n    - cron: '0 3 * * *'\njobs:\n  - run: python etl/label.py --all",
        ),
        (".github/workflows/x.yml", "on:\n  schedule:\n    - cron: '0 3 * * *'\njobs:\n  - run: python -m etl.label"),
        ("crontab", "# comment\n0 3 * * * root cd /srv && python3 /srv/etl/label.py >> log"),
        ("deploy/job.yaml", "kind: CronJob\nspec:\n  args: ['python', '-m', 'etl.label']"),
    ],
)
def test_a_schedule_that_runs_a_script_makes_it_a_cron(find: Find, name: str, text: str) -> None:
    """Workflows, crontabs and CronJobs beside the code say what starts a script, with their line."""
    site = only(find(files={name: text, "etl/label.py": f"def main():\n {ASK}\nif __name__ == '__main__':\n main()"}))
    assert site.waits == "cron"
    assert f"{name}:{len(text.splitlines())}" in site.why


@pytest.mark.parametrize(
    "text",
    [
        "on: push\njobs:\n  - run: python etl/label.py",
        "on:\n  schedule:\n    - cron: '0 3 * * *'\njobs:\n  - run: python etl/other.py",
        "on:\n  schedule:\n    - cron: '0 3 * * *'\njobs:\n  # - run: python etl/label.py",
    ],
)
def test_a_workflow_that_does_not_schedule_a_script_says_nothing(find: Find, text: str) -> None:
    """Without a schedule, or with another script, a script stays a script."""
    site = only(find(files={".github/workflows/x.yml": text, "etl/label.py": ASK}))
    assert site.waits == "script"


def test_a_command_of_the_project_is_a_script(find: Find) -> None:
    """A function that pyproject.toml makes a command is a script."""
    files = {"pyproject.toml": "[project.scripts]\nx = 'shop.cli:main'", "src/shop/cli.py": f"def main():\n {ASK}"}
    assert only(find(files=files)).waits == "script"


@pytest.mark.parametrize(
    ("kind", "stream", "needs", "proof"),
    [
        ("request handler", True, Needs.SYNC, Proof.LIKELY),
        ("request handler", False, Needs.SYNC, Proof.LIKELY),
        ("agent loop", False, Needs.NEAR_REAL_TIME, Proof.LIKELY),
        ("agent loop", True, Needs.SYNC, Proof.LIKELY),
        ("DAG task", None, Needs.BATCH, Proof.LIKELY),
        ("cron", None, Needs.BATCH, Proof.LIKELY),
        *((kind, None, Needs.ASK, Proof.UNCLEAR) for kind in ("script", "queue", "notebook", "test", "unknown")),
    ],
)
def test_code_speaks_and_never_proves(kind: str, stream: bool | None, needs: Needs, proof: Proof) -> None:
    """Code says who waits at the most; what starts a call says nothing about who reads it later."""
    site = CodeSite("a.py", 1, 1, "openai", "c.create", "f", kind, "why", stream, None)
    (reason,) = reasons_of(site)
    assert (reason.says, reason.proof, reason.kind) == (needs, proof, "code")
    assert "why" in reason.text


# ------------------------------------------------------------------------------------------------------------ prompts

RULES = "These rules never change. " * 40
LINTS = {
    "the time (datetime.now())": "f'It is {datetime.now()}. {RULES}'",
    "the time (datetime.now().isoformat())": "'It is ' + datetime.now().isoformat() + RULES",
    "an id or chance (uuid.uuid4())": "'{} {}'.format(uuid.uuid4(), RULES)",
    "text that varies (question)": "'%s' % question + RULES",
    "text that varies (question.title())": "'' + '' + question.title() + " + "'' + " * 20 + "RULES",
    "text that varies (user.name)": "TEMPLATE.format(name=user.name)",
}


@pytest.mark.parametrize(("what", "prompt"), LINTS.items())
def test_text_that_varies_before_text_that_does_not_is_remarked(find: Find, what: str, prompt: str) -> None:
    """The lint names what varies, its place and how much constant text stands behind it."""
    text = f"import uuid\nfrom datetime import datetime\nRULES = {RULES!r}\nTEMPLATE = {'{name} ' + RULES!r}\n"
    call = "def f(client, question, user):\n client.chat.completions.create(model='m', "
    call += f"messages=[{{'role': 'system', 'content': {prompt}}}])"
    (lint,) = only(find(text + call)).lints
    assert lint.startswith(f"{what} at app.py:6 stands before 1,0")


@pytest.mark.parametrize(
    "messages",
    [
        "[{'role': 'system', 'content': RULES}, {'role': 'user', 'content': f'{question} {datetime.now()}'}]",
        "[{'role': 'system', 'content': f'{RULES} {question}'}]",
        "[{'role': 'user', 'content': f'{question} short'}]",
        "make(RULES, question)",
    ],
)
def test_text_that_varies_at_the_end_is_fine(find: Find, messages: str) -> None:
    """Constant text first, then what varies, is how a cache wants it; unknown text is not judged."""
    text = f"from datetime import datetime\nRULES = {RULES!r}\ndef f(client, question):\n"
    assert only(find(f"{text} client.chat.completions.create(model='m', messages={messages})")).lints == ()


def test_a_system_text_counts_as_first(find: Find) -> None:
    """Anthropic's `system` stands before the messages, wherever it is written."""
    text = f"import anthropic\nRULES = {RULES!r}\ndef f(q, name):\n anthropic.Anthropic().messages.create(model='m', "
    text += "max_tokens=9, messages=[{'role': 'user', 'content': RULES}], system=f'You help {name}')"
    (lint,) = only(find(text)).lints
    assert "text that varies (name)" in lint


# ------------------------------------------------------------------------------------------------------------ joining


def site(file: str, line: int, function: str, *labels: str) -> CodeSite:
    return CodeSite(file, line, 1, "openai", "c.create", function, "unknown", "", None, None, labels=labels)


CODE = (
    site("src/etl/label.py", 88, "Labeller.run"),
    site("src/etl/label.py", 93, "Labeller.run"),
    site("src/etl/embed.py", 12, "run"),
    site("src/crm/summary.py", 17, "summarise", "summary-v2"),
    site("src/crm/mail.py", 30, "draft", "mail"),
    site("src/crm/mail.py", 60, "send"),
    site("src/chat/__init__.py", 5, "reply"),
    site("nb/a.ipynb", 3, "cell 2"),
)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("src/etl/label.py:88", [88]),
        ("etl/label.py:88", [88]),
        ("label.py:93", [93]),
        ("/srv/app/src/etl/label.py:88", [88]),
        ("./etl/label.py:88:4", [88]),
        (r"C:\work\src\etl\label.py:88", [88]),
        ("label.py:90", [88]),
        ("label.py", [88, 93]),
        ("etl.label.Labeller.run", [88, 93]),
        ("label.run", [88, 93]),
        ("Labeller.run", [88, 93]),
        ("app.src.etl.embed.run", [12]),
        ("embed.py::run", [12]),
        ("embed.py:run", [12]),
        ("summarise", [17]),
        ("summary-v2", [17]),
        ("crm.summary", [17]),
        ("mail", [30]),
        ("chat.reply", [5]),
        ("a.ipynb:3", [3]),
    ],
)
def test_a_logged_name_finds_its_call(name: str, lines: list[int]) -> None:
    """File and line, module and function, a class and its method or a literal label: the longest end that fits."""
    assert [s.line for s in join(CODE, [name]).get(name, ())] == lines
    assert possible(CODE, [name]) == {}


@pytest.mark.parametrize(
    ("name", "lines"), [("run", [88, 93, 12]), ("mail.py:500", [30, 60]), ("mail.py", [30, 60]), ("crm.mail", [30, 60])]
)
def test_an_ambiguous_name_joins_nothing(name: str, lines: list[int]) -> None:
    """A name that fits several functions alike gets none of them, and all are listed as possible."""
    assert join(CODE, [name]) == {}
    assert [s.line for s in possible(CODE, [name])[name]] == lines


@pytest.mark.parametrize(
    "name", ["", "etl/other.py:88", "x.label.run", "other", "summary", ":", "...", ".py", "é\x00:1"]
)
def test_a_name_of_nothing_joins_nothing(name: str) -> None:
    """A name that ends like no call is not there at all."""
    assert (join(CODE, [name]), possible(CODE, [name])) == ({}, {})


@given(st.text(max_size=60))
def test_any_name_can_be_asked_for(name: str) -> None:
    """Names come from logs: none raises, and none is both certain and merely possible."""
    assert not join(CODE, [name]).keys() & possible(CODE, [name]).keys()


def test_the_labels_of_a_call_are_read(find: Find) -> None:
    """Names in the call, its metadata, its decorator and the prompt it loads are what logs may call it."""
    text = (
        "from langfuse import observe\nfrom langfuse.openai import openai\n@observe(name='outer')\ndef f(lf):\n"
        " p = lf.get_prompt('summary-v2')\n"
        " openai.chat.completions.create(model='m', messages=[], name='gen', metadata={'feature': 'crm'})"
    )
    assert set(only(find(text)).labels) == {"outer", "summary-v2", "gen", "crm"}


# ------------------------------------------------------------------------------------------------- files of all kinds


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"import openai\ndef f(:\n", 2),
        (b"import openai\nprint 'x'\n", 2),
        (b"import openai\nexec 'x' in d\n", 2),
        (b"import openai\n\x00", 1),
        (b"# coding: nonsense\nimport openai\n", 1),
        (b"import openai\nx = '\xff'\n", 2),
        (b"import openai\n" + b"(" * 500, 2),
        (b"import openai\nx = " + b"-" * 100_000 + b"1", 1),
        (b"import openai\nx = a" + b".b" * 50_000, 1),
        (b"openai" + b" " * MAX_BYTES, 1),
    ],
)
def test_a_file_that_cannot_be_read_is_listed_and_the_others_are_read(find: Find, content: bytes, line: int) -> None:
    """Syntax errors, Python 2, NUL, wrong encodings, depth and size name the file and stop nothing."""
    findings = find(files={"bad.py": content, "good.py": ASK})
    assert [s.file for s in findings.sites] == ["good.py"]
    (bad,) = findings.unreadable
    assert bad.file == "bad.py"
    assert bad.line in {line, 1}
    assert bad.why
    assert findings.n_files == 2


@pytest.mark.parametrize(
    "content",
    [
        "# coding: latin-1\nx = 'é'\n".encode("latin-1") + ASK.encode(),
        b"\xef\xbb\xbf" + ASK.encode(),
        ASK.encode() + b"\r\n",
        b"x = '\\d'\n" + ASK.encode(),
        b"#!/usr/bin/python\n# -*- coding: cp1251 -*-\nx = '\xcf'\n" + ASK.encode(),
    ],
)
def test_encodings_that_python_knows_are_read(find: Find, content: bytes) -> None:
    """PEP 263, a byte order mark, other line ends and doubtful escapes are Python."""
    assert only(find(files={"app.py": content})).library == "openai"


@pytest.mark.parametrize(
    "notebook", ["openai", "[]", '{"cells": 1, "x": "openai"}', '{"cells": [{"openai": 1}]}', "[" * 90_000 + "openai"]
)
def test_a_notebook_that_is_none_is_listed(find: Find, notebook: str) -> None:
    """What is no notebook of format 4 is unreadable, if it could hold a call at all."""
    findings = find(files={"n.ipynb": notebook})
    assert [bad.file for bad in findings.unreadable] == (["n.ipynb"] if "openai" in notebook else [])


def test_folders_that_are_not_the_users_are_left_out(find: Find, tmp_path: Path) -> None:
    """Hidden, installed and built code is skipped, and no link is followed out of the folder or back into it."""
    skipped = [
        ".hidden/a.py",
        "venv/a.py",
        "site-packages/a.py",
        "node_modules/a.py",
        "build/a.py",
        "e/lib/a.py",
        ".a.py",
    ]
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "b.py").write_text(ASK)
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "linked.py").symlink_to(outside / "b.py")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    findings = find(files={**dict.fromkeys(skipped, ASK), "e/pyvenv.cfg": "", "kept/a.py": ASK})
    assert [s.file for s in findings.sites] == ["kept/a.py"]
    assert findings.n_files == 1


def test_hostile_names_are_printed_as_escapes(find: Find, tmp_path: Path) -> None:
    """A file's name with control characters is shown without them."""
    (tmp_path / "a\x1b[2J\n.py").write_text(ASK)
    assert only(find_calls(tmp_path)).file == "a\\x1b[2J\\n.py"


def test_a_single_file_can_be_asked_for(tmp_path: Path) -> None:
    """The root may be one file."""
    (tmp_path / "a.py").write_text(ASK)
    assert only(find_calls(tmp_path / "a.py")).file == "a.py"


def test_names_that_lead_in_circles_end(find: Find) -> None:
    """Files, names, functions and classes that refer to each other are followed once."""
    findings = find(
        files={
            "a.py": "from b import *\nfrom b import x, C\nfrom a import y\ny = y\nclass D(C):\n def f(self): return self.g()"
            f"\n def g(self): return self.f() or {ASK}\ndef h():\n return k()\ndef k():\n return h() or x.responses",
            "b.py": "from a import *\nfrom a import x, D\nclass C(D):\n pass\nx = x or x.y\nx.chat.completions.create()",
        }
    )
    assert [(s.file, s.waits) for s in findings.sites] == [("a.py", "unknown"), ("b.py", "script")]


FRAGMENTS = [
    "import openai", "from a import *", "from . import b", "client = openai.OpenAI()", "def f(client):", "class A(B):",
    " return client", " self.c = client", "@app.post('/x')", "while True:", "for x in y:", " " + ASK, ASK, "x = x",
    "x = f(x)", "with client as c:", " pass", "global x", "lambda x: x", "(p | m).invoke(1)", "x: 'X[' = 1", "messages.append(1)",
    "class A(A): pass", "f.delay()", "client.responses.create(model='m', input=f'{x}' % y, **{**z})", "\x00", "\t", "é", "%%x",
]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14), st.lists(st.sampled_from(FRAGMENTS), max_size=8))
def test_any_text_is_read_or_listed(tmp_path: Path, one: list[str], other: list[str]) -> None:
    """Nothing in a source raises: a file gives calls, or is unreadable."""
    (tmp_path / "a.py").write_text("\n".join(one), "utf-8")
    (tmp_path / "b.py").write_text("\n".join(other), "utf-8")
    for found in find_calls(tmp_path).sites:
        assert reasons_of(found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_listed(tmp_path: Path, content: bytes) -> None:
    """Random bytes in a file or a notebook never raise, and hide no other file's calls."""
    (tmp_path / "a.py").write_bytes(b"#openai\n" + content)
    (tmp_path / "n.ipynb").write_bytes(content + b"openai")
    (tmp_path / "good.py").write_text(ASK)
    assert "good.py" in {s.file for s in find_calls(tmp_path).sites}
