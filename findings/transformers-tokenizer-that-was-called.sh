#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: a tokenizer that was called with truncation or padding keeps them in
# the file that `save_pretrained` writes: others that read the file cut or pad every text, transformers does not.
#
# One would expect arguments of one call to be forgotten after it, as the next call suggests, which gives all
# tokens again. Seen here, of a text of 8 words, after a call with truncation=True, max_length=3 and
# padding="max_length", and `save_pretrained`:
#   tokenizer.json of the tokenizer before the call     truncation null, padding null
#   after it                                            truncation to 3, padding to 3
#   AutoTokenizer of the saved folder                   8 tokens; a text of 1 word: 1
#   tokenizers.Tokenizer.from_file of it                3 tokens; a text of 1 word: 3, two of them padding
#   saved after one more call without arguments         null, null
# A calibration or training script leaves so its sequence length in the checkpoint; a server or a judge that is
# built on the other reader answers the first lines of each prompt, and nothing says so. Save the tokenizer
# before its first call, or compare "truncation" and "padding" in the file with those of the original.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    "transformers==5.23.0" "tokenizers==0.23.3"

cat >"$folder/look.py" <<'PY'
import json
import pathlib
import sys

import tokenizers
import transformers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
folder = pathlib.Path(sys.argv[1])
words = {word: number for number, word in enumerate("[UNK] [PAD] a b c d".split())}
made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
)
long, short = "a b c d a b c d", "a"
called = {"truncation": True, "max_length": 3, "padding": "max_length"}
EXPECTED = {  # kept in the file; tokens of the long and the short text for the other reader
    "before": (False, 8, 1),
    "after": (True, 3, 3),
    "after a call without arguments": (False, 8, 1),
}
for name, (kept, *lengths) in EXPECTED.items():
    if name == "after":
        assert [len(ids) for ids in tokenizer([long, short], **called)["input_ids"]] == [3, 3]
    if name == "after a call without arguments":
        assert len(tokenizer(long)["input_ids"]) == 8
    tokenizer.save_pretrained(folder / name)
    file = folder / name / "tokenizer.json"
    content = json.loads(file.read_text())
    plain = tokenizers.Tokenizer.from_file(str(file))
    again = transformers.AutoTokenizer.from_pretrained(folder / name)
    found = [len(plain.encode(text).ids) for text in (long, short)]
    reloaded = [len(again(text)["input_ids"]) for text in (long, short)]
    print(f"{name}: truncation {content['truncation']}, padding {content['padding']}; "
          f"tokens by tokenizers {found}, by transformers {reloaded}")
    assert (content["truncation"] is not None) == kept == (content["padding"] is not None)
    assert found == lengths and reloaded == [8, 1], (found, reloaded)
print("as described")
PY
"$folder/env/bin/python" "$folder/look.py" "$folder/saved"
