"""Names, things and topics that generated problems are made of."""

from __future__ import annotations

NAMES = (
    "Anna", "Boris", "Chen", "Dalia", "Emre", "Farah", "Goran", "Hana", "Iris", "Jonas", "Kofi", "Lena",
    "Mara", "Nils", "Olga", "Pedro", "Quinn", "Rosa", "Sami", "Tara", "Uma", "Viktor", "Wanda", "Yusuf",
)  # fmt: skip
THINGS = (
    "marbles", "apples", "stamps", "pencils", "coins", "cards", "shells", "books", "eggs", "tickets",
    "stickers", "beads", "oranges", "candles", "bricks", "flowers",
)  # fmt: skip
LONG_WORDS = (
    "strawberry", "committee", "bookkeeper", "parallel", "mississippi", "banana", "accommodate", "elephant",
    "necessary", "horizon", "kangaroo", "lighthouse", "mathematics", "notebook", "orchestra", "penguin",
    "quarrel", "raspberry", "successful", "tangerine", "umbrella", "vacuum", "whistle", "xylophone",
    "yesterday", "zeppelin", "balloon", "carriage", "dinosaur", "envelope", "furniture", "grasshopper",
)  # fmt: skip
ORDERS = (
    ("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"),
    ("richer", "richest", "poorest"), ("heavier", "heaviest", "lightest"),
)  # fmt: skip
JOBS = (
    "painting the fence", "washing the car", "cooking soup", "repairing the roof", "mowing the lawn",
    "writing the report", "packing boxes", "testing the pump", "sorting the mail", "watering the plants",
    "cleaning the cellar", "printing the flyers",
)  # fmt: skip
LANGUAGES_OF_CODE = ("Python", "JavaScript", "Java", "Rust", "C++", "Go", "SQL", "Python")
EASY_FUNCTIONS = (
    "reverses a string", "checks whether a number is prime", "counts the vowels of a text",
    "finds the largest item of a list", "removes duplicates from a list", "converts Celsius to Fahrenheit",
    "returns the factorial of n", "tests whether a text is a palindrome", "sums the digits of a number",
    "merges two sorted lists", "counts the words of a text", "finds the second smallest number of a list",
)  # fmt: skip
HARD_FUNCTIONS = (
    "finds the longest common subsequence of two strings", "solves the 0/1 knapsack problem",
    "parses an arithmetic expression with parentheses and evaluates it", "implements an LRU cache",
    "returns the shortest path in a weighted graph", "finds all permutations of a list without recursion",
    "matches a pattern with * and ? against a text", "solves a sudoku by backtracking",
    "computes the edit distance of two words", "schedules intervals so that the fewest rooms are needed",
    "serializes a binary tree and reads it back", "finds the median of two sorted arrays in O(log n)",
)  # fmt: skip
DEMANDS = (
    "It must run in linear time.", "Handle empty input.", "Do not use built-in sorting.",
    "Add type annotations.", "It must not change its argument.", "Raise an error on bad input.",
    "Use constant memory.", "Include a docstring.",
)  # fmt: skip
CHOICES = (
    ("Which planet has the shortest year?", "Mercury", ("Venus", "Mars", "Jupiter")),
    ("Which gas do plants take up for photosynthesis?", "Carbon dioxide", ("Oxygen", "Nitrogen", "Helium")),
    ("Of a ball thrown up, at its highest point, the speed is", "zero", ("9.8", "largest", "negative")),
    ("Which of these is a mammal?", "Bat", ("Eagle", "Salmon", "Frog")),
    ("What does the boiling point of water do on a mountain?", "Fall", ("Rise", "Stay", "Double")),
    ("Which number comes next: 2, 6, 12, 20, 30?", "42", ("36", "40", "44")),
    ("Which material conducts electricity best?", "Copper", ("Glass", "Rubber", "Wood")),
    ("All bloops are razzies, all razzies are lazzies. So all bloops are", "lazzies", ("none", "few", "bad")),
    ("Which organ makes insulin?", "The pancreas", ("The liver", "The heart", "The spleen")),
    ("A shirt costs 40 after a discount of 20 %. What did it cost before?", "50", ("48", "60", "45")),
    ("Which of these words is the odd one out?", "Carrot", ("Apple", "Pear", "Plum")),
    ("The shadow of a pole is longest", "in the evening", ("at noon", "at one o'clock", "at eleven o'clock")),
)  # fmt: skip
CAPITALS = (
    (
        ("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Egypt", "Cairo"),
        ("Germany", "Berlin"), ("Russia", "Moscow"), ("China", "Beijing"), ("Greece", "Athens"),
    ),
    (
        ("Norway", "Oslo"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Vietnam", "Hanoi"),
        ("Hungary", "Budapest"), ("Cuba", "Havana"), ("Morocco", "Rabat"), ("Finland", "Helsinki"),
    ),
    (
        ("Burkina Faso", "Ouagadougou"), ("Bhutan", "Thimphu"), ("Palau", "Ngerulmud"), ("Nauru", "Yaren"),
        ("Eswatini", "Mbabane"), ("Tuvalu", "Funafuti"), ("Comoros", "Moroni"), ("Kiribati", "South Tarawa"),
    ),
)  # fmt: skip
ELEMENTS = (
    ("gold", "Au"), ("iron", "Fe"), ("sodium", "Na"), ("potassium", "K"), ("silver", "Ag"), ("lead", "Pb"),
    ("tin", "Sn"), ("mercury", "Hg"), ("tungsten", "W"), ("copper", "Cu"), ("helium", "He"), ("zinc", "Zn"),
    ("oxygen", "O"), ("antimony", "Sb"),
)  # fmt: skip
BOOKS = (
    ("Hamlet", "William Shakespeare"), ("War and Peace", "Leo Tolstoy"),
    ("Don Quixote", "Miguel de Cervantes"),
    ("Pride and Prejudice", "Jane Austen"), ("The Trial", "Franz Kafka"), ("Moby-Dick", "Herman Melville"),
    ("Faust", "Johann Wolfgang von Goethe"), ("Ulysses", "James Joyce"), ("The Stranger", "Albert Camus"),
    ("Things Fall Apart", "Chinua Achebe"), ("Dead Souls", "Nikolai Gogol"), ("Candide", "Voltaire"),
)  # fmt: skip
PLACES = (
    "Oberwald", "Lissemond", "Karavik", "Tarnow Mill", "Bellcombe", "Drosten", "Vallorge", "Hexham Vale",
    "Sturgeon Bay", "Almere Bridge", "Nordholt", "Castelbrun",
)  # fmt: skip
TRADES = (
    "weavers' guild", "observatory", "grammar school", "botanical garden", "fire brigade", "rowing club",
    "printing house", "savings bank",
)  # fmt: skip
FORMS = (
    "a short poem", "a haiku", "a bedtime story", "a limerick", "a song", "a product description",
    "a birthday greeting", "a dialogue", "a slogan", "an opening paragraph of a novel", "a speech", "a joke",
)  # fmt: skip
TOPICS = (
    "the sea in winter", "an old lighthouse", "learning to cook", "a cat that travels", "the first snow",
    "moving to a new city", "a lost umbrella", "friendship", "a garden in spring", "night trains",
    "growing tomatoes", "a shy robot", "coffee", "mountain hiking", "saving money", "better sleep",
    "job interviews", "learning the guitar",
)  # fmt: skip
TONES = (
    "in a cheerful tone", "in a formal tone", "for children", "in a few words", "with a surprising end",
    "in a friendly way", "as if written by a pirate", "in plain language",
)  # fmt: skip
TONGUES = ("French", "German", "Spanish", "Japanese", "Arabic", "Hindi", "Portuguese", "Chinese", "Turkish")
SENTENCES = (
    "The meeting was moved to next week because the manager is ill.",
    "The museum opens at nine and is closed on Mondays.",
    "Our company has grown quickly, and we are looking for people who like to work in a team.",
    "The river rose during the night, but nobody was hurt.",
    "She had never seen the ocean before, and the noise of the waves surprised her.",
    "Please send us the signed contract as soon as you can.",
    "The new library has a reading room, a small cafe and a terrace.",
    "Although the train was late, we reached the concert in time.",
    "Bees are important for many plants that people eat.",
    "The report says that sales fell in spring and recovered in autumn.",
    "He forgot his keys at home and had to wait for his sister.",
    "The weather will stay dry until the weekend.",
)
FOREIGN = (
    "Das Treffen wurde auf nächste Woche verschoben.", "Le musée est fermé le lundi.",
    "La reunión empieza a las nueve.", "Поезд опоздал на два часа.", "図書館は月曜日に休みです。",
    "会议推迟到下周举行。", "الاجتماع يبدأ في التاسعة.", "बैठक नौ बजे शुरू होगी।",
    "Toplantı gelecek haftaya ertelendi.", "Η βιβλιοθήκη είναι κλειστή σήμερα.",
)  # fmt: skip
FOREIGN_REQUESTS = (
    "Translate into English:", "Correct the mistakes:", "Übersetze ins Englische:", "Traduis en anglais :",
    "Переведи на английский:", "英語に訳してください：", "翻译成英文：", "What does this mean?",
)  # fmt: skip
ASKS = (
    "can you give me some advice about {}?", "what do you think about {}?", "tell me something about {}.",
    "I would like to know more about {}.", "how do I get started with {}?", "explain {} to a beginner.",
    "any ideas for a weekend about {}?", "why do people like {}?", "what are the pros and cons of {}?",
    "I feel a bit down. Let us chat about {}.",
)  # fmt: skip
