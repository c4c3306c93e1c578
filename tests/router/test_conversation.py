"""What is read of a conversation."""

import json

import pytest

from coe.router.client_markup import read_turn
from coe.router.client_tasks import ANSWER_TOKENS, DEFAULT, ClientTasks, client_task_of
from coe.router.conversation import Conversation, client_task_in, is_follow_up


def task_of(messages, tasks=DEFAULT) -> str | None:
    """The name of the client's task that a chat is."""
    task = Conversation.from_messages(messages, tasks=tasks).client_task
    assert task == client_task_in(messages, tasks)
    return task.name if task is not None else None


def words(text):
    return read_turn(text).text


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_the_newest_human_text_counts_most_and_the_system_prompt_least():
    conversation = Conversation.from_messages(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            user("Find the integral of x squared from zero to one."),
            assistant("1/3"),
            user("Which French wine goes with a mushroom risotto for six guests?"),
        ]
    )
    assert conversation.passages[0].text.startswith("Which French wine")
    assert conversation.passages[0].weight > 0.8
    assert sum(p.weight for p in conversation.passages) == pytest.approx(1)
    alone = Conversation.from_messages([{"role": "system", "content": "You are a lawyer."}, user("How do tides work?")])
    assert alone.passages[0].weight > 0.8


def test_a_short_follow_up_leans_on_what_went_before():
    conversation = Conversation.from_messages([user("Solve x^2 = n for n = 4"), assistant("2"), user("and for n = 5?")])
    assert conversation.follow_up
    assert conversation.passages[1].weight >= conversation.passages[0].weight


@pytest.mark.parametrize("names", [1, 40])
def test_a_choice_of_tools_is_recognised_behind_their_list(names: int) -> None:
    tools = [{"name": f"tool_{at}", "description": "What it does, at some length. " * 8} for at in range(names)]
    choose = (
        "Your task is to choose and return the correct tool(s) from the list of available tools.\n- Only JSON.\n" * 2
    )
    messages = [
        {"role": "system", "content": f"Available Tools: {json.dumps(tools)}\n\n{choose}"},
        {"role": "user", "content": "Query: What is the capital of Egypt?"},
    ]
    assert task_of(messages) == "tool choice"
    own = {"role": "system", "content": f"Available Tools: {json.dumps(tools)}\n\nUse them where they help."}
    assert task_of([own, messages[1]]) is None


@pytest.mark.parametrize(
    "text",
    [
        *("and for n = 5?", "commit it", "thanks!", "why?", "make it shorter please", "go on", "what about n = 7?"),
        *("ok, now in Rust", "can you explain that?", "prove it", "translate it to German", "use a set instead"),
        *("no, the other one", "with recursion", "looks good, commit and push it", "could you elaborate?"),
        *("I don't get the second step", "is there a simpler way?", "what do you mean by that?", "as a table please"),
        *("hmm are you sure about the last part?", "where did the 2 come from?", "give me another example"),
        *("Great, thank you so much for all your help!", "that makes sense, thanks", "thanks, that really helped me"),
        *("can you be more specific?", "where can I find more?", "answer in one sentence", "that's not what I asked"),
        *("explain why", "explain step 2", "what's next?", "What is wrong?", "what is that?", "define it", "!", "😀"),
    ],
)
def test_replies_that_say_little_are_follow_ups(text):
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "Translate the following sentence into French: good morning",
        "What are the early symptoms of type 2 diabetes in adults?",
        "and now for something different, please explain the commerce clause of the constitution",
        "Why is the sky blue at noon?",
        "What should I cook tonight?",
        "How long does it take to boil eggs?",
        "In Python, how do I sort a list?",
        "show me a recipe for pancakes",
        "thanks, and what is the capital of Peru?",
        "If I drop a ball from 10 m, how fast does it land?",
        "Is it legal to record a phone call in Ohio?",
        "Now how do I cook rice for six?",
        "Translate good morning into French",
        "Explain photosynthesis",
        "What is DNA?",
        "Who was Freud?",
        "solve x^2=9",
        "That was great, but is it really safe to eat?",
    ],
)
def test_full_questions_are_no_follow_ups(text):
    assert not is_follow_up(text)


def test_a_chain_of_replies_leans_on_the_last_question_not_on_the_replies():
    conversation = Conversation.from_messages(
        [
            user("Find the integral of x squared from zero to one."),
            *(turn for text in ("too long", "step by step", "why?") for turn in (assistant("1/3"), user(text))),
        ]
    )
    assert conversation.follow_up
    assert [p.text for p in conversation.passages] == ["why?", "Find the integral of x squared from zero to one."]


def test_a_system_prompt_says_something_only_where_it_names_a_subject():
    bare = Conversation.from_messages(
        [{"role": "system", "content": "You are a helpful assistant."}, user("Which court hears appeals from here?")]
    )
    assert len(bare.passages) == 1
    named = Conversation.from_messages([{"role": "system", "content": "You are a tax lawyer in Ohio."}, user("hello")])
    assert named.passages[1].text == "You are a tax lawyer in Ohio."
    assert 0.1 < named.passages[1].weight < 0.5


def test_the_first_message_of_a_conversation_is_no_follow_up():
    assert not Conversation.from_text("thanks").follow_up


def test_code_and_pasted_documents_do_not_drown_the_question():
    code = "```python\n" + "x = compute(x)\n" * 500 + "```"
    read = read_turn(f"Is this contract clause enforceable?\n{code}\nPlease answer for Austria.")
    assert "enforceable" in read.text
    assert "Austria" in read.text
    assert "compute" not in read.text
    assert "compute" in read.quoted
    assert len(read.quoted) < 300
    long = words("Summarise the verdict.\n" + "lorem ipsum " * 5000 + "\nWho won?")
    assert len(long) < 5000
    assert long.startswith("Summarise")
    assert long.endswith("Who won?")
    mail = read_turn("> an old mail\n" * 400 + "Can you answer this politely?")
    assert mail.text == "Can you answer this politely?"
    assert len(mail.quoted) < 300
    assert (
        words('Who wrote this?\n"""\n' + "To be or not to be.\n" * 300 + '"""\nAnd when?')
        == "Who wrote this?\nAnd when?"
    )


def test_a_quotation_counts_little_beside_a_question_and_is_the_subject_of_a_short_one():
    document = "<document>\n" + "Metformin improves insulin sensitivity. " * 80 + "</document>\n"
    asked = "Write a friendly invitation to a barbecue on Saturday for all of my neighbours."
    question, quotation = Conversation.from_text(document + asked).passages
    assert question.text == asked
    assert question.weight > 0.85
    assert "Metformin" in quotation.text
    (alone,) = Conversation.from_text(document + "What does this mean?").passages
    assert "What does this mean?" in alone.text
    assert "Metformin" in alone.text
    (only,) = Conversation.from_text(document).passages
    assert "Metformin" in only.text


def test_a_fence_that_is_never_closed_hides_no_question():
    assert "Why does it fail?" in words("```python\nx = 1\n" * 1 + "y = 2\n" * 200 + "Why does it fail?")


OPEN_WEBUI = (
    "### Task:\nRespond to the user query using the provided context.\n<context><source id='1'>"
    + "Heart rate and blood pressure. " * 300
    + "</source></context>\n<user_query>Which sorting algorithm is stable?</user_query>"
)
# Its template since then: the tag of sources is spoken of, and the question has no tag.
OPEN_WEBUI_BEHIND = (
    "### Task:\nRespond to the user query using the provided context, with citations **only when the <source> tag has "
    'an id** (e.g., <source id="1">).\n\n### Output:\nCite [id] when the <source> tag is there.\n\n<context>\n'
    + '<source id="1" name="heart.pdf">Heart rate and blood pressure.</source>\n' * 30
    + "</context>\n\nWhich sorting algorithm is stable?"
)
LANGCHAIN = (
    "Use the following pieces of context to answer the question at the end.\n"
    + "The heart pumps blood. " * 60
    + "\nQuestion: Which sorting algorithm is stable?\nHelpful Answer:"
)
LM_STUDIO = (
    "The following content was found in the files provided by the user.\n"
    + 'Citation 1: "The heart pumps blood."\n' * 30
    + "User Query:\n\nWhich sorting algorithm is stable?"
)
STATE = (
    "<environment_details>\n# Open Tabs\nsrc/heart.py\n# Current Time\n4:03 PM\n"
    + "src/blood.py\n" * 300
    + "</environment_details>"
)
REMINDER = "<system-reminder>\n" + "Run the linter before every commit. " * 80 + "\n</system-reminder>\n"
COPILOT = (
    "<attachments>\n<attachment id='heart.ts'>\n" + "const blood = 1;\n" * 80 + "</attachment>\n</attachments>\n"
    "<editorContext>\nThe user's current file is heart.ts.\n</editorContext>\n"
    "<reminderInstructions>\nKeep going until it is done.\n</reminderInstructions>\n"
    "<userRequest>\nWhich sorting algorithm is stable?\n</userRequest>"
)
CURSOR = (
    "<additional_data>\n<current_file>\nPath: heart.go\n</current_file>\n</additional_data>\n\n"
    "<user_query>\nWhich sorting algorithm is stable?\n</user_query>"
)
AIDER = (
    "Which sorting algorithm is stable?\n\n# *SEARCH/REPLACE block* Rules:\n"
    "Every *SEARCH/REPLACE block* must use this format:\n1. The file path alone on a line"
)


@pytest.mark.parametrize(
    "text",
    [
        *(OPEN_WEBUI, OPEN_WEBUI_BEHIND, LANGCHAIN, LM_STUDIO, COPILOT, CURSOR, AIDER),
        f"<task>\nWhich sorting algorithm is stable?\n</task>\n\n{STATE}",
        f"{REMINDER}Which sorting algorithm is stable?",
        f"[ask_question for 'it'] Result:\n<feedback>\nWhich sorting algorithm is stable?\n</feedback>\n{STATE}",
        f"<task>\n<question>\nWhich sorting algorithm is stable?\n</question>\n</task>{STATE}",
    ],
    ids=[
        "open-webui",
        "open-webui-behind",
        "langchain",
        "lm-studio",
        "copilot",
        "cursor",
        "aider",
        "cline",
        "reminder",
        "feedback",
        "nested",
    ],
)
def test_the_humans_words_are_taken_out_of_what_a_client_puts_around_them(text):
    assert words(text) == "Which sorting algorithm is stable?"
    assert client_task_of(text) is None
    passages = Conversation.from_text(text).passages
    assert passages[0].text == "Which sorting algorithm is stable?"


def test_tags_that_are_spoken_of_are_no_markup():
    text = "In Cline, what is put between <task> and </task>, and what is the use of it in general?"
    assert words(text) == text
    text = "Why does the <document> tag break this?\n<document>\n" + "The heart pumps blood.\n" * 40 + "</document>"
    assert words(text) == "Why does the <document> tag break this?"


@pytest.mark.parametrize(
    "text",
    [
        f"[read_file for 'src/app.py'] Result:\n\nimport flask\n\n{STATE}",
        f"[execute_command for 'npm test'] Result:\nCommand executed.\n{STATE}",
        f"[ERROR] You did not use a tool in your previous response! Please retry with a tool use.\n{STATE}",
        "EXECUTION RESULT of [execute_bash]:\nmake: *** [all] Error 2",
        "OBSERVATION:\nfile saved",
        "<tool_response>\n{'rows': 3}\n</tool_response>",
        "# 1 SEARCH/REPLACE block failed to match!\n",
    ],
)
def test_a_tools_result_in_a_users_turn_is_part_of_a_tool_exchange(text):
    asked = "Why does the build of my C++ program end with a linker error?"
    conversation = Conversation.from_messages([user(asked), assistant("Let me look."), user(text)])
    assert conversation.tool_exchange
    assert conversation.passages[0].text == asked
    assert not conversation.follow_up


def test_words_beside_a_tools_result_end_the_exchange():
    text = f"[write_to_file for 'a.py'] Result:\nDenied.\n<feedback>\nuse argon2 instead\n</feedback>\n{STATE}"
    conversation = Conversation.from_messages([user("<task>\nAdd a login page\n</task>"), assistant("Ok."), user(text)])
    assert not conversation.tool_exchange
    assert conversation.follow_up
    assert conversation.passages[0].text == "use argon2 instead"


def test_a_clients_preparations_are_nobodys_question():
    conversation = Conversation.from_messages(
        [
            user("# AGENTS.md instructions for /home/jo/shop\n\n<INSTRUCTIONS>\nUse tabs.\n</INSTRUCTIONS>"),
            user("<environment_context>\n<cwd>/home/jo/shop</cwd>\n</environment_context>"),
            user("I have *added these files to the chat* so you can go ahead and edit them.\n\nshop.py"),
            assistant("Ok."),
            user("Fix the failing unit test of the shopping cart."),
        ]
    )
    assert [p.text for p in conversation.passages] == ["Fix the failing unit test of the shopping cart."]
    assert not conversation.tool_exchange


def test_a_turn_of_machines_words_alone_is_read_as_it_is_where_nothing_else_is_there():
    (passage,) = Conversation.from_text("OBSERVATION: the heart pumps blood").passages
    assert "heart" in passage.text


CHAT = "USER: how do tides work?\nASSISTANT: The moon pulls the water.\nUSER: and at night?"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (
            "### Task:\nPredict the 3 to 5 most useful next messages that the user could send in this chat.\n"
            f"### Chat History:\n<chat_history>\n{CHAT}\n</chat_history>",
            "follow-ups",
        ),
        (f"Give this conversation a short name of two or three words.\n\n{CHAT}", "title"),
        (f"Which topics does the following dialogue touch? Assign up to three labels.\n\n{CHAT}", "tags"),
        ('Write a heading for the session below.\n[{"role": "user", "content": "Hi"}]', "title"),
        (
            f"Condense the transcript into one paragraph, keeping decisions.\n<transcript>\n{CHAT}\n</transcript>",
            "summary",
        ),
        ("Provide a detailed prompt for continuing our conversation above. Focus on what we did.", "summary"),
        ("You are the component that summarizes internal chat history into a given structure.\n", "summary"),
        ("You are a specialized conversation history compressor. Your task is to distil the chat", "summary"),
        (
            f"Here it is so far:\n\n<conversation>\n{CHAT}\n</conversation>\n\nCreate a new anchored summary from the "
            "conversation history in the <conversation> tags above, so that another agent can go on.",
            "summary",
        ),
        (f"Summarize the chat below.\n<chat_history>\n{CHAT}\n</chat_history>\nBe brief.", "summary"),
        (f"<chat_history>\n{CHAT}\n</chat_history>\nSuggest two titles for this chat.", "title"),
    ],
)
def test_tasks_of_clients_are_recognised_by_their_shape(text, task):
    assert client_task_of(text) == task


@pytest.mark.parametrize(
    "text",
    [
        "Write a title for my essay on how conversations begin in novels.",
        "What does this chat log say about the bug?\nUSER: it crashes\nASSISTANT: where?",
        f"{CHAT}\nWho of the two is right?",
        f"<conversation>\n{CHAT}\n</conversation>\nWho of the two is right?",
        f"<conversation>\n{CHAT}\n</conversation>\nGenerate a summary of how tides work from other sources.",
        "Write a title. My template says <conversation> and </conversation>.",
        "Summarize the history of Rome in three messages.",
        "Write a dialogue.\nUSER: hello\nshould be its first line.",
        'My API gets {"role": "user", "content": "Hi"} and answers 400. Why?',
    ],
)
def test_what_people_ask_about_conversations_is_no_clients_task(text):
    assert client_task_of(text) is None


COMPACTIONS = (
    "Summarize the conversation below for the next agent.\n\nUser: fix the parser\nUser: and the lexer",
    "Your task is to compact the conversation history.\n<history>\nuser: fix the parser\n</history>",
    'Condense this conversation into a handoff.\n[{"role": "user", "content": "fix the parser"}]',
    "You are performing a CONTEXT CHECKPOINT COMPACTION. Create a handoff summary for another LLM that takes over.",
    "Summarize our conversation so far so that work can continue in a fresh session. Include decisions and open ends.",
    "Please compress the above messages into a state snapshot, which replaces the older history.",
    "The session is running out of context. Write a comprehensive summary of everything we did and what is left.",
)


@pytest.mark.parametrize("text", COMPACTIONS)
def test_a_compaction_needs_no_turn_of_an_assistant(text):
    assert task_of([user(text)]) == "summary"
    assert task_of([{"role": "system", "content": "You are a coding agent."}, user("fix it"), user(text)]) == "summary"
    assert task_of([user("fix it"), assistant("Done."), user(text)]) == "summary"


def test_a_title_needs_no_turn_of_an_assistant():
    assert task_of([user("Give the following chat a title of three words.\n\nUSER: how do tides work?")]) == "title"


def test_an_application_that_speaks_of_chats_does_no_clients_task():
    system = {
        "role": "system",
        "content": "In this chat, suggest the next useful question and a title for each story.\n"
        "Example:\nUser: hello\nAssistant: hi there. When you run out of context, write a summary of what we did.",
    }
    assert task_of([system, user("Tell me about tides.")]) is None


def test_what_a_task_is_for_bounds_its_answer():
    named = ClientTasks().find("Generate a title for this conversation:\n")
    assert named is not None
    assert named.answer_tokens == ANSWER_TOKENS["title"] < ANSWER_TOKENS["tags"] < ANSWER_TOKENS["summary"]
    shaped = ClientTasks().find(f"Give this conversation a short name.\n\n{CHAT}")
    assert shaped is not None
    assert shaped.answer_tokens is not None
    assert shaped.answer_tokens > named.answer_tokens, "a person's own words may have the shape"


def test_an_operator_bounds_tasks_in_another_way():
    tasks = ClientTasks({"lunch": ["menu"], "tea": ["biscuits"]}, {"title": 0, "lunch": 40})
    for text, bound in (
        ("Generate a title for this conversation:\n", None),
        (f"Give this conversation a short name.\n\n{CHAT}", None),
        ("What is on the menu?", 40),
        ("Any biscuits?", None),
    ):
        task = tasks.find(text)
        assert task is not None
        assert task.answer_tokens == bound


def test_an_operators_patterns_tell_tasks_as_well():
    tasks = ClientTasks({"title": ["^label this thread"], "lunch": [r"\bmenu\b"]})
    for text, name in (
        ("  Label this thread: hello", "title"),
        ("What is on the menu?", "lunch"),
        ("Generate a title for this conversation:\n", "title"),
    ):
        assert task_of([user(text)], tasks) == name
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        ClientTasks({"title": ["("]})


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### ...", "title"),
        ("### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history", "tags"),
        ("### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might ask", "follow-ups"),
        ("### Task:\nYou are an autocompletion system. Continue the text in `<text>`", "autocompletion"),
        (
            "### Task:\nAnalyze the chat history to determine the necessity of generating search queries",
            "search queries",
        ),
        ("Provide a concise, 5-word-or-less title for the conversation, using its same language", "title"),
        ("Create a concise, 3-5 word title with an emoji for the following query: hello", "title"),
        ("Generate a concise 3-7 word title for this conversation, omitting punctuation. Go straight to it.", "title"),
        ("Generate a title for this conversation:\n", "title"),
        ("You are a title generator. You output ONLY a thread title. Nothing else.", "title"),
        ("You are an expert in crafting pithy titles for chatbot conversations. You are presented with", "title"),
        ("Please write a brief title for the following request:\n\nhow do tides work", "title"),
        ("Given the following... please reply with a title for the chat that is 3-4 words in length", "title"),
        ("Please generate a four to five word title summarizing our conversation without any lead-in", "title"),
        ("Based on the chat history, give this conversation a name.\nKeep it short.", "title"),
        (
            "Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A concise title",
            "title",
        ),
        ("You are a professional conversation summarizer. Generate a concise title that captures", "title"),
        ("You are an AI conversation titles assistant who specializes in creating expressive titles", "title"),
        ("Summarize the given session as a 10-word title using user language, ignoring commands", "title"),
        ("Your task is to create a detailed summary of the conversation so far, paying close attention", "summary"),
        ("Summarize the discussion briefly in 200 words or less to use as a prompt for future context.", "summary"),
        ("*Briefly* summarize this partial conversation about programming.\nInclude less detail", "summary"),
        ("You are an expert software engineer that generates concise, one-line Git commit messages", "commit message"),
        ("Generate an enhanced version of this prompt (reply with only the enhanced prompt):\n", "prompt rewriting"),
        ("Your task is to choose and return the correct tool(s) from the list of available tools", "tool choice"),
        ("You are a context summarization agent. You are given a conversation between a user and an agent", "summary"),
        ("You are the component that summarizes a conversation when its context window is about to", "summary"),
        ("You are a specialized context summarizer that creates a comprehensive markdown summary", "summary"),
        ("Generate a one-line session recap now", "summary"),
        ("Generate a concise, sentence-case title (3-7 words) that captures what this session is", "title"),
        ("[SUGGESTION MODE: Suggest what the user might naturally type next.]\n\nFIRST: Look at", "follow-ups"),
        ("Analyze *only* the content and structure of your immediately preceding response (your last", "next speaker"),
        ("Managed memory has TWO directories. Choose which one to write each memory into", "memory"),
        ("Generate a concise git commit message for these changes. Reply with ONLY the commit", "commit message"),
    ],
)
def test_tasks_of_chat_clients_are_recognised(text, task):
    assert client_task_of(text) == task
    assert task_of([user(text)]) == task


@pytest.mark.parametrize(
    "text",
    [
        "Suggest a title for my essay about whales",
        "Write five tags for my blog post on sourdough",
        "What follow-up questions should a doctor ask a patient with headaches?",
        "Implement an autocompletion system for a search box in JavaScript",
        "### Task:\nWrite a function that sorts a list.",
        "Write a Python program that acts as a title generator for blog posts",
        "How do I write a good Git commit message?",
        "Give this conversation between Romeo and Juliet a modern setting",
        "Summarize the discussion of free will in Kant's second Critique in 200 words",
        "Generate a title for a thriller about a tax lawyer",
        "Write a title for this chat",
        "Write a title for the poem below, and then a second stanza.\n\nThe sea is grey",
        "Generate a concise, 5 word title for my essay about whales, then write the essay",
        "You are a title generator for videos about cooking. Suggest 20 titles with a paragraph each.",
        "Give me the names of all who speak in this conversation, and what each wants.\nUser: x\nAssistant: y",
        "Summarize our conversation so far",
        "Write a summary of the next chapter so that the work of the translator can begin",
        "Summarize the progress of fusion research above all in Europe",
        "Analyze this conversation and provide feedback on how I negotiated",
        "You are a professional conversation summarizer. Summarize the minutes of our meeting",
        "Generate a concise, funny title (3 words or so) for my cat video",
        "Generate a concise explanation of git commit messages",
        "Managed memory has two costs in .NET. Which?",
        "Suggest what the user of a login form might type next",
    ],
)
def test_people_who_ask_for_titles_and_tags_are_not_taken_for_a_client(text):
    assert client_task_of(text) is None


def test_a_tool_exchange_is_a_pending_call_or_a_fresh_result():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "42"}
    assert Conversation.from_messages([user("look it up"), call]).tool_exchange
    assert Conversation.from_messages([user("look it up"), call, result]).tool_exchange
    done = [user("look it up"), call, result, assistant("42"), user("thanks")]
    assert not Conversation.from_messages(done).tool_exchange


def called(content=""):
    arguments = '{"path": "main.c"}'
    call = {"id": "1", "type": "function", "function": {"name": "read_file", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def gave(text):
    return {"role": "tool", "tool_call_id": "1", "content": text}


def test_what_a_client_says_of_itself_does_not_end_a_tool_exchange():
    reminder = user("<system-reminder>The todo list is empty.</system-reminder>")
    turn = [user("Fix the parser in main.c, please, it crashes on empty input"), called(), gave("int main() {}")]
    asked = Conversation.from_messages(turn[:1])
    for tail in ([], [reminder], [reminder, reminder]):
        conversation = Conversation.from_messages([*turn, *tail])
        assert conversation.tool_exchange
        assert conversation.passages == asked.passages
    assert not Conversation.from_messages([reminder]).tool_exchange
    assert not Conversation.from_messages([*turn, reminder, user("Now write the tests for it")]).tool_exchange
    assert not Conversation.from_messages([*turn, assistant("It is fixed."), reminder]).tool_exchange


def test_an_agents_conversation_is_about_what_its_human_said():
    system = {"role": "system", "content": "You are a coding agent. Use the tools to edit files. " * 400}
    asked = "Explain the causes of the French revolution in two paragraphs for my history class"
    results = [message for _ in range(30) for message in (called("Reading on."), gave("def f(x): return x\n" * 110))]
    conversation = Conversation.from_messages([system, user(asked), *results], tools_chars=60_000)
    assert conversation.passages[0].text == asked
    assert conversation.passages[0].weight > 0.9
    assert conversation.client_task is None
    assert not any("def f(x)" in passage.text for passage in conversation.passages)


def test_tools_and_calls_are_to_be_read_but_only_results_are_new():
    before = [user("Fix it, the parser crashes on empty input"), called()]
    bare = Conversation.from_messages([*before, gave("x" * 100)])
    with_tools = Conversation.from_messages([*before, gave("x" * 100)], tools_chars=60_000)
    assert with_tools.n_chars == bare.n_chars + 60_000
    assert with_tools.n_new_chars == bare.n_new_chars == 100
    assert bare.n_chars > 100 + len(before[0]["content"]), "calls are read as well"
    first = Conversation.from_messages(before[:1], tools_chars=60_000)
    assert first.n_new_chars == first.n_chars > 60_000


def test_a_client_that_sends_its_history_again_is_recognised():
    first = Conversation.from_messages([user("Prove it.")])
    second = Conversation.from_messages([user("Prove it."), assistant("Done."), user("again, slower")])
    other = Conversation.from_messages([user("Prove that."), assistant("Done."), user("again, slower")])
    assert first.before is None
    assert second.before == first.here
    assert other.before != first.here


def test_a_system_prompt_that_tells_the_time_does_not_hide_a_conversation():
    at_ten = Conversation.from_messages([{"role": "system", "content": "It is 10:00"}, user("Hi there")])
    at_eleven = Conversation.from_messages(
        [{"role": "system", "content": "It is 11:00"}, user("Hi there"), assistant("Hi"), user("and now?")]
    )
    assert at_eleven.before == at_ten.here


def test_what_a_client_puts_into_the_newest_turn_only_does_not_hide_a_conversation():
    asked = "Which sorting algorithm is stable?"
    now = Conversation.from_messages([user(OPEN_WEBUI)])
    later = Conversation.from_messages([user(asked), assistant("Merge sort."), user("why?")])
    assert later.before == now.here
    reminded = Conversation.from_messages([user(REMINDER + asked)])
    assert reminded.here == now.here


def test_what_a_move_would_have_to_read_again_is_counted():
    first = Conversation.from_messages([{"role": "system", "content": "x" * 10}, user("y" * 20)])
    assert (first.n_chars, first.n_new_chars) == (30, 30)
    second = Conversation.from_messages([user("y" * 20), assistant("z" * 50), user("and then?")])
    assert (second.n_chars, second.n_new_chars) == (79, 9)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": "   "}],
        [{"role": "user", "content": "?!"}],
        [{"role": "system", "content": "You are a lawyer."}, {"role": "user", "content": "😀"}],
        [{"role": "system", "content": "You are a lawyer."}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": 7}, "odd", None]}],
        [{"role": 3, "content": 4}],
    ],
)
def test_messages_without_anything_to_read_give_no_passages(messages):
    assert Conversation.from_messages(messages).passages == ()


@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone",
        "a\0b",
        "x" * 1_000_000,
        "`" * 200_000,
        "```\n" * 50_000,
        "> \n" * 100_000,
        "<source>" * 50_000,
        "a <source> " * 20_000 + "</source>",
        "<user_query>" * 50_000,
        "İ<context>" * 20_000,
        "x <task></task> " * 20_000,
        "\n<task>\n<query>\n<feedback>" * 10_000,
        "\nQuestion: " * 50_000,
        '"""\n' * 50_001,
        "<task>\n" + "<context>" * 30_000 + "</task>",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_strange_and_enormous_texts_are_read_without_harm(text):
    conversation = Conversation.from_messages([user(text), assistant(text), user(text)])
    assert all(len(p.text) < 10_000 for p in conversation.passages)
    assert conversation.here


def test_text_parts_are_read_in_order():
    parts = [{"type": "text", "text": "Which court"}, {"type": "text", "text": "hears appeals?"}]
    assert Conversation.from_messages([user(parts)]).passages[0].text == "Which court\nhears appeals?"


@pytest.mark.parametrize(
    "before", ["", "The previous request exceeded the provider's size limit due to large media.\n\n"]
)
def test_a_client_that_goes_on_in_the_users_name_says_nothing_of_a_subject(before):
    goes_on = "Continue if you have next steps, or stop and ask for clarification if you are unsure how to proceed."
    messages = [user("Mend the parser of my Python project"), assistant("It is mended."), user(before + goes_on)]
    conversation = Conversation.from_messages(messages)
    assert conversation.follow_up
    assert conversation.passages[0].text == "Continue."


def test_of_a_conversation_that_a_client_has_shortened_the_summary_is_read():
    resumed = "Mending the parser.\n\nResume the prior task using the summary above. Do not acknowledge the summary."
    files = "The following files were recently accessed before context was compacted. They are listed:\n- law.txt"
    passages = Conversation.from_messages([user(resumed), assistant("Got it."), user(files)]).passages
    assert [passage.text for passage in passages] == ["Mending the parser."]
